"""The catalogue: who a scan shows, and who is held out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.archive.catalogue import CATALOGUE, held_out_subjects, read_catalogue, split_by_subject, subject_of
from raygenesis.errors import WorkspaceError
from raygenesis.workspace import write_table

many = settings(max_examples=100, deadline=None, derandomize=True, database=None)
subjects = st.sets(st.integers(0, 10_000).map("sub-{}".format), min_size=2, max_size=60)
fractions = st.floats(0.01, 0.99)


@pytest.mark.parametrize(
    ("source", "pattern", "subject"),
    [
        ("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", None, "sub-01"),
        ("site_sub-A7_T1w.nii", None, "sub-A7"),
        ("hippocampussub-set/a.nii.gz", None, "hippocampussub-set/a"),  # not an entity of BIDS
        ("a/b.nii.gz", None, "a/b"),
        ("a/b.NII", None, "a/b"),
        ("b.nii.gz.nii", None, "b.nii.gz"),
        ("IXI014-HH-1236_T1.nii.gz", r"(IXI\d+)", "IXI014"),
        ("IXI014-HH-1236_T1.nii.gz", r"IXI\d+", "IXI014"),
        ("sub-01_run-3.nii", r"(?:run-)?(P\d+)?", "sub-01_run-3"),
        ("sub-A.nii", r"sub-(\d+)?", "sub-A"),
        ("scan.nii", r"sub-(\d+)", "scan"),
    ],
)
def test_the_subject_of_a_scan(source: str, pattern: str | None, subject: str) -> None:
    assert subject_of(source, pattern) == subject


@many
@given(subjects, fractions, st.integers(0, 5))
def test_held_out_are_the_first_by_hash(ids, fraction, seed) -> None:
    by_hash = sorted(ids, key=lambda subject: hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest())
    held_out = held_out_subjects(ids, fraction, seed)
    assert held_out == set(by_hash[: len(held_out)])
    assert 1 <= len(held_out) < len(ids)
    assert abs(len(held_out) - fraction * len(ids)) <= 1


@many
@given(subjects, fractions)
def test_held_out_do_not_depend_on_order_or_on_how_many_scans_each_has(ids, fraction) -> None:
    assert held_out_subjects(sorted(ids), fraction, 3) == held_out_subjects([*ids, *sorted(ids)[::-1]], fraction, 3)


@many
@given(subjects, st.integers(0, 10_000))
def test_one_more_subject_exchanges_at_most_one(ids, newcomer) -> None:
    before, after = (held_out_subjects(who, 0.3, 0) for who in (ids, ids | {f"sub-{newcomer}"}))
    assert len(before - after) <= 1


def test_another_seed_holds_out_others() -> None:
    ids = [f"sub-{number}" for number in range(100)]
    assert len({held_out_subjects(ids, 0.2, seed) for seed in range(5)}) == 5


def test_never_changes_between_versions() -> None:
    assert held_out_subjects("0123456789", 0.3, 7) == set("025")


def test_all_scans_of_a_subject_are_on_one_side() -> None:
    rows = [{"subject_id": f"s{number % 7}", "scan": number} for number in range(40)]
    training, validation = split_by_subject(rows, 0.3, 1)
    assert sorted(row["scan"] for row in training + validation) == list(range(40))
    assert not {row["subject_id"] for row in training} & {row["subject_id"] for row in validation}
    assert {row["subject_id"] for row in validation} == held_out_subjects(map("s{}".format, range(7)), 0.3, 1)


def test_of_one_subject_nobody_is_held_out() -> None:
    assert held_out_subjects(["a", "a"], 0.5, 0) == frozenset()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [{"volume_id": volume_id, "subject_id": "s", "shape": [2, 3, 4]} for volume_id in "cab"]
    write_table(tmp_path / "catalog.parquet", pa.Table.from_pylist(rows, CATALOGUE))
    return tmp_path / "catalog.parquet"


def test_rows_come_in_order_of_id_all_or_those_asked_for(path: Path) -> None:
    rows = read_catalogue(path)
    assert [row["volume_id"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["shape"] == [2, 3, 4] and list(rows[0]) == CATALOGUE.names
    assert [row["volume_id"] for row in read_catalogue(path, ["c", "a", "not there"])] == ["a", "c"]
    assert read_catalogue(path, iter(())) == []


def test_a_missing_or_damaged_catalogue_says_what_to_do(path: Path) -> None:
    with pytest.raises(WorkspaceError, match="run `raygenesis ingest` first"):
        read_catalogue(path.with_name("other.parquet"))
    content = path.read_bytes()
    for damaged in (b"", b"PAR1", content[:-20], b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(WorkspaceError, match="is damaged: remove it"):
            read_catalogue(path)
