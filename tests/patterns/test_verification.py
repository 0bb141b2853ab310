"""No damage escapes `verify`, and the remedy it names mends."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygenesis import cli
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.cells import encode
from raygenesis.patterns.schema import PATTERN
from raygenesis.patterns.verification import verify
from raygenesis.patterns.writer import checksum, part_path, write_part
from raygenesis.workspace.artifacts import CROPS, PATTERNS
from raygenesis.workspace.workspace import Workspace
from tests.support.stores import StorePlan, change_manifest, write_store

CROPPED = StorePlan(references=0, coordinates=5, neighbours=6)


def rewrite(workspace: Workspace, part: int, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of a part, and let the manifest have its checksum."""
    path = part_path(workspace.patterns, part)
    rows = pq.read_table(path).to_pylist()
    change(rows)
    write_part(workspace.patterns, part, pa.Table.from_pylist(rows, PATTERN))
    change_manifest(workspace.patterns, lambda manifest: manifest["parts"].__setitem__(part, asdict(checksum(path))))


def test_a_whole_store_is_whole(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(workspace) == 128
    assert "verify: 128 patterns in 3 parts are whole" in capsys.readouterr().out
    part_path(workspace.patterns, 7).write_bytes(b"")
    assert verify(workspace) == 128
    assert "part-000007.parquet is no part of the store" in capsys.readouterr().out


def flip_in_a_cell(path: Path) -> None:
    content = bytearray(path.read_bytes())
    cell = pq.read_table(path)["cube"][5].as_py()
    content[content.index(cell) + len(cell) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip_in_a_cell, r"its checksum is [0-9a-f]{16}, and [0-9a-f]{16} was written"),
        (cut_short, r"it has \d+ bytes, and \d+ were written"),
        (Path.unlink, "it is missing"),
    ],
)
def test_damage_is_named_and_the_remedy_mends_it(workspace: Workspace, capsys, damage, sentence: str) -> None:
    part, manifest = part_path(workspace.patterns, 1), workspace.patterns / "manifest.json"
    whole, record = part.read_bytes(), manifest.read_bytes()
    damage(part)
    with pytest.raises(WorkspaceError, match=rf"1 of 3 parts in .* are damaged, part-000001.parquet: {sentence}: rem"):
        verify(workspace)
    assert re.search(rf"verify: part-000001.parquet: {sentence}\n", capsys.readouterr().out)
    with pytest.raises(SystemExit) as ended:
        cli.main(["patterns", "verify", "--workspace", str(workspace.root)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith("remove the parts named above and manifest.json there, then run `raygenesis discover`\n")
    # What it advises; `discover` writes the same rows to the same bytes.
    part.unlink(missing_ok=True)
    manifest.unlink()
    part.write_bytes(whole)
    manifest.write_bytes(record)
    assert verify(workspace) == 128


def test_every_damaged_part_is_listed(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for part in (0, 2):
        cut_short(part_path(workspace.patterns, part))
    with pytest.raises(WorkspaceError, match="2 of 3 parts"):
        verify(workspace)
    said = capsys.readouterr().out
    assert "part-000000.parquet: it has" in said and "part-000002.parquet: it has" in said
    assert "part-000001.parquet" not in said


def wrong_label(rows: list[dict[str, Any]]) -> None:
    rows[9]["label"] += 1


def wrong_reference(rows: list[dict[str, Any]]) -> None:
    rows[9] |= {"reference": 2, "label": 2 * 4 + rows[9]["coordinate"]}


def wrong_shape(rows: list[dict[str, Any]]) -> None:
    rows[9]["cube"] = encode(np.zeros((4, 6, 7), np.float32))


def cell_cut_short(rows: list[dict[str, Any]]) -> None:
    rows[9]["cube"] = rows[9]["cube"][:-1]


def bad_payload(rows: list[dict[str, Any]]) -> None:
    cell = encode(np.zeros((4, 6, 8), np.float32))  # noise would be stored as it is, where any payload is one
    rows[9]["cube"] = cell[:16] + b"\xff" * (len(cell) - 16)


def wrong_split(rows: list[dict[str, Any]]) -> None:
    rows[9]["split"] = "test"


def same_id(rows: list[dict[str, Any]]) -> None:
    rows[9]["pattern_id"] = rows[8]["pattern_id"]


def id_of_an_earlier_part(rows: list[dict[str, Any]]) -> None:
    rows[9]["pattern_id"] = 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (wrong_label, r"pattern \d+ of reference 1 and coordinate 0 has the label 5"),
        (wrong_reference, r"pattern \d+ of reference 2 and coordinate 0 has the label 8"),
        (wrong_shape, r"pattern \d+: cell holds 336 bytes, not the 384 of shape \(4, 6, 8\)"),
        (cell_cut_short, r"pattern \d+: cell of \d+ bytes is cut short or damaged"),
        (bad_payload, r"pattern \d+: error during blosc decompression"),
        (wrong_split, r"split 'test' is unknown"),
        (same_id, "ids of its patterns are there twice"),
        (id_of_an_earlier_part, "ids of its patterns are there twice"),
    ],
)
def test_what_no_checksum_shows_is_found_too(workspace: Workspace, change, sentence: str) -> None:
    rewrite(workspace, 1, change)
    with pytest.raises(WorkspaceError, match=rf"1 of 3 parts in .* are damaged, part-000001.parquet: {sentence}"):
        verify(workspace)


def test_other_columns_are_found(workspace: Workspace) -> None:
    path = part_path(workspace.patterns, 0)
    pq.write_table(pq.read_table(path).drop_columns("extent_mm"), path)
    change_manifest(workspace.patterns, lambda manifest: manifest["parts"].__setitem__(0, asdict(checksum(path))))
    with pytest.raises(WorkspaceError, match="its columns are not those of a pattern store"):
        verify(workspace)


@pytest.mark.parametrize(("name", "held"), [("patterns", 128), ("validation", 32)])
def test_counts_that_do_not_match_are_found(workspace: Workspace, name: str, held: int) -> None:
    change_manifest(workspace.patterns, lambda manifest: manifest["counts"].update({name: 5}))
    with pytest.raises(WorkspaceError, match=rf"manifest.json counts 5 {name}, and its parts hold {held}: remove it"):
        verify(workspace)


def test_a_manifest_without_checksums_is_refused(workspace: Workspace) -> None:
    for change in (lambda manifest: manifest["parts"].pop(), lambda manifest: manifest.pop("parts")):
        change_manifest(workspace.patterns, change)
        with pytest.raises(WorkspaceError, match=r"does not hold a checksum of each of its 3 parts .* `raygenesis d"):
            verify(workspace)


def test_random_crops_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.open(tmp_path)
    CROPPED.write(workspace.crops)
    assert verify(workspace, CROPS) == 40
    assert "verify: 40 patterns in 3 parts are whole" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"label": 0}, {"reference": 0}, {"coordinate": 5}])
def test_random_crops_with_a_label_or_beyond_their_number_are_found(tmp_path: Path, change: dict[str, int]) -> None:
    parts = CROPPED.parts()
    parts[1][3] |= change
    write_store(tmp_path / "crops", parts, CROPPED)
    sentence = r"part-000001\.parquet: pattern \d+ of reference -?\d and coordinate \d has the label -?\d: .* crop`"
    with pytest.raises(WorkspaceError, match=sentence):
        verify(Workspace.existing(tmp_path), CROPS)


def test_no_store_says_which_verb_makes_one(tmp_path: Path) -> None:
    for store, verb in ((PATTERNS, "discover"), (CROPS, "crop")):
        with pytest.raises(WorkspaceError, match=f"run `raygenesis {verb}` first"):
            verify(Workspace.open(tmp_path), store)
