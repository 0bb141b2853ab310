"""Names from files: shown in one line, and inside of the folder they are put in."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygenesis.cluster.progress import lines, say
from raygenesis.errors import RaygenesisError
from raygenesis.text.names import inner_path, printable, reason_text
from raygenesis.text.tables import aligned
from raygenesis.transfer.examples import Example, ImageFile, Problem

ESCAPES = ["\x1b[2J", "a\nfinetune: all is well", "a\rb", "\u202egnp.exe", "\0", "\u2028", "\udc80", "\x9b1m"]
OUTSIDE = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a//b",
    "a/",
    "a\\..\\b",
    "a\nb",
    "a\0b",
    "x" * 256,
    "é" * 128,
]


@pytest.mark.parametrize("text", ESCAPES)
def test_what_moves_a_cursor_or_ends_a_line_is_escaped_wherever_it_is_shown(text: str) -> None:
    problem = Problem(text, text)
    say("test", text)
    for shown in (printable(text), problem.name, problem.reason, lines()[-1], *aligned([[text]])):
        assert not any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in shown)


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=50))
def test_other_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


@given(st.text(st.characters(), max_size=50))
def test_shown_text_can_be_written_in_one_line(text: str) -> None:
    assert len(printable(text).encode().splitlines()) <= 1


def test_long_names_are_cut() -> None:
    assert len(Problem("x" * 10**6, "y" * 10**6).name) == 200
    assert printable("abcdef", 4) == "abc…"


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused(name: str) -> None:
    with pytest.raises(RaygenesisError, match="could lead out of a folder"):
        inner_path(name)
    with pytest.raises(RaygenesisError):
        Example(name, "subject", ImageFile((Path("a"),)))


@given(st.text(st.sampled_from("ab./\\\n~ "), max_size=12))
def test_an_inner_path_stays_inside(name: str) -> None:
    try:
        path = Path("/folder", inner_path(name))
    except RaygenesisError:
        return
    assert path.resolve().is_relative_to("/folder") and path.resolve() != Path("/folder")


@pytest.mark.parametrize(("said", "shown"), [
    ("cut short", "cut short"),
    ("/data/jane_doe/a.nii.gz: cut short", "a.nii.gz: cut short"),
    ("No such file: '/data/jane_doe/a.nii'", "No such file: 'a.nii'"),
    ('open("/data/x/y/z.dcm") failed (/tmp/q/r)', 'open("z.dcm") failed (r)'),
    ("sub-01/anat/a.nii is not there", "sub-01/anat/a.nii is not there"),
    ("0.5 mm/voxel, 3/4 of them, and/or 10/12/2020", "0.5 mm/voxel, 3/4 of them, and/or 10/12/2020"),
    ("s3://bucket/jane/a.nii", "s3://bucket/jane/a.nii"),
    ("/one", "/one"), ("a line\nbreak", r"a line\nbreak"),
])  # fmt: skip
def test_a_reason_names_files_without_their_folders(said: str, shown: str) -> None:
    assert reason_text(said) == shown == reason_text(shown)
