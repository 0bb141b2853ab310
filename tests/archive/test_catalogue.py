"""The catalogue: its rows, and who is held out."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.archive.catalogue import (
    CATALOGUE,
    ROWS_PER_GROUP,
    CatalogueRow,
    CatalogueRows,
    hash_order,
    held_out_subjects,
    num_held_out,
    read_catalogue,
    read_columns,
    split_by_subject,
    voxel_bytes,
    write_catalogue,
)
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import write_table

many = settings(max_examples=100, deadline=None, derandomize=True, database=None)
subjects = st.sets(st.integers(0, 10_000), min_size=2, max_size=60)
fractions = st.floats(0.01, 0.99)


def rows_of(numbers: Iterable[int], name: str = "sub-{}") -> list[dict[str, str]]:
    """One scan a subject; the volume id, a hash of the scan, does not follow from the name."""
    return [{"subject_id": name.format(n), "volume_id": hashlib.md5(b"%d" % n).hexdigest()} for n in numbers]


@many
@given(subjects, fractions, st.integers(0, 5))
def test_held_out_are_the_first_by_hash(ids, fraction, seed) -> None:
    rows = rows_of(ids)
    by_hash = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}/{row['volume_id']}".encode()).hexdigest())
    held_out = held_out_subjects(rows, fraction, seed)
    assert held_out == {row["subject_id"] for row in by_hash[: len(held_out)]}
    assert 1 <= len(held_out) == num_held_out(len(ids), fraction) < len(ids)
    assert abs(len(held_out) - fraction * len(ids)) <= 1


@many
@given(subjects, fractions)
def test_held_out_do_not_depend_on_order_or_on_how_many_scans_each_has(ids, fraction) -> None:
    """A subject's first scan by id places it, wherever in the table it stands."""
    rows = rows_of(ids)
    more = [{**row, "volume_id": f"{row['volume_id']}-{number}"} for row in rows for number in range(2)]
    expected = held_out_subjects(rows, fraction, 3)
    assert expected == held_out_subjects(rows[::-1] + more, fraction, 3) == held_out_subjects(more + rows, fraction, 3)


@many
@given(subjects, fractions)
def test_held_out_do_not_depend_on_what_subjects_are_called(ids, fraction) -> None:
    """Every workspace of the same scans holds out the same, whatever its key makes of the names."""
    plain, hashed = (held_out_subjects(rows_of(ids, name), fraction, 3) for name in ("sub-{}", "pseudonym-{}"))
    assert {name.replace("sub", "pseudonym") for name in plain} == hashed


@many
@given(subjects, st.integers(0, 10_000))
def test_one_more_subject_exchanges_at_most_one(ids, newcomer) -> None:
    before, after = (held_out_subjects(rows_of(who), 0.3, 0) for who in (ids, ids | {newcomer}))
    assert len(before - after) <= 1


def test_another_seed_holds_out_others() -> None:
    rows = rows_of(range(100))
    assert len({held_out_subjects(rows, 0.2, seed) for seed in range(5)}) == 5


def test_never_changes_between_versions() -> None:
    rows = [{"subject_id": f"s{name}", "volume_id": name} for name in "0123456789"]
    assert held_out_subjects(rows, 0.3, 7) == {"s0", "s2", "s5"}


def test_all_scans_of_a_subject_are_on_one_side() -> None:
    rows = [{"subject_id": f"s{number % 7}", "volume_id": f"{number:02d}"} for number in range(40)]
    training, validation = split_by_subject(rows, 0.3, 1)
    assert sorted(row["volume_id"] for row in training + validation) == [row["volume_id"] for row in rows]
    assert not {row["subject_id"] for row in training} & {row["subject_id"] for row in validation}
    assert {row["subject_id"] for row in validation} == held_out_subjects(rows[:7], 0.3, 1)


def test_of_one_subject_nobody_is_held_out() -> None:
    rows = [{"subject_id": "a", "volume_id": name} for name in "xy"]
    assert held_out_subjects(rows, 0.5, 0) == frozenset()


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


def test_a_catalogue_of_an_earlier_version_has_no_notes(path: Path) -> None:
    earlier = CATALOGUE.remove(CATALOGUE.get_field_index("notes"))
    rows = [{"volume_id": volume_id, "shape": [2, 3, 4], "corrections": ["turned"]} for volume_id in "ab"]
    write_table(path, pa.Table.from_pylist(rows, earlier))
    assert [(row["corrections"], row["notes"]) for row in read_catalogue(path)] == [(["turned"], [])] * 2
    assert read_columns(path, ["notes"], ["b"])["notes"].to_pylist() == [[]]
    write_catalogue(path, [*read_catalogue(path, ["a"]), {**rows[1], "notes": ["assumed"]}])
    assert [row["notes"] for row in read_catalogue(path)] == [[], ["assumed"]]


def test_a_missing_or_damaged_catalogue_says_what_to_do(path: Path) -> None:
    with pytest.raises(WorkspaceError, match="run `raygenesis ingest` first"):
        read_catalogue(path.with_name("other.parquet"))
    content = path.read_bytes()
    for damaged in (b"", b"PAR1", content[:-20], b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(WorkspaceError, match="is damaged: remove it"):
            read_catalogue(path)


def test_volumes_of_one_dimension_are_chosen_and_none_at_all_is_said(path: Path) -> None:
    rows = [{"volume_id": str(n), "shape": [2] * ndim} for n, ndim in enumerate((3, 2, 3))]
    write_table(path, pa.Table.from_pylist(rows, CATALOGUE))
    assert [row["volume_id"] for row in read_catalogue(path, ndim=3)] == ["0", "2"]
    assert [row["volume_id"] for row in read_catalogue(path, ["1", "2"], ndim=2)] == ["1"]
    write_table(path, pa.Table.from_pylist(rows[1:2], CATALOGUE))
    with pytest.raises(WorkspaceError, match=r"no 3D scans, and discovery\.cube_shape asks for 3D"):
        read_catalogue(path, ndim=3)


def test_some_columns_come_in_the_order_asked_for_with_the_same_rows(path: Path) -> None:
    table = read_columns(path, ["subject_id", "volume_id"])
    assert table.column_names == ["subject_id", "volume_id"] and table["volume_id"].to_pylist() == ["a", "b", "c"]
    alone = read_columns(path, ["subject_id"], ["c", "a", "not there"])
    assert alone.column_names == ["subject_id"] and alone.num_rows == 2
    assert read_columns(path, CATALOGUE.names).to_pylist() == read_catalogue(path)


def test_columns_of_one_dimension_are_those_of_its_rows(path: Path) -> None:
    rows = [{"volume_id": str(n), "shape": [n + 2] * ndim} for n, ndim in enumerate((3, 2, 3))]
    write_table(path, pa.Table.from_pylist(rows, CATALOGUE))
    assert read_columns(path, ["shape"], ndim=3)["shape"].to_pylist() == [[2, 2, 2], [4, 4, 4]]
    assert read_columns(path, ["volume_id"], ["0", "1"], ndim=2)["volume_id"].to_pylist() == ["1"]
    assert read_columns(path, ["volume_id"], [], ndim=2).num_rows == 0
    with pytest.raises(WorkspaceError, match=r"no 2D scans, and discovery\.cube_shape asks for 2D"):
        read_columns(path, ["volume_id"], ["0"], ndim=2)


def test_rows_are_read_where_they_are_looped_over(path: Path) -> None:
    rows = CatalogueRows(path, ["a", "c"])
    content = path.read_bytes()
    path.unlink()
    assert len(pickle.dumps(rows)) < 500 and len(rows) == 2
    path.write_bytes(content)
    assert list(pickle.loads(pickle.dumps(rows))) == read_catalogue(path, ["a", "c"])


def test_volumes_next_to_each_other_are_found_without_the_rest_of_a_large_catalogue(path: Path) -> None:
    rows = [{"volume_id": f"{number:05d}", "subject_id": "s", "shape": [2, 3, 4]} for number in range(20_000)]
    write_catalogue(path, rows)
    groups = pq.ParquetFile(path).metadata
    assert groups.num_row_groups == -(-20_000 // ROWS_PER_GROUP)
    assert [row["volume_id"] for row in read_catalogue(path, ["19998", "19999"])] == ["19998", "19999"]
    first = groups.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    begin = first.dictionary_page_offset or first.data_page_offset
    content[begin : begin + first.total_compressed_size] = bytes(first.total_compressed_size)
    path.write_bytes(content)  # the first group cannot be read any more
    assert [row["volume_id"] for row in read_catalogue(path, ["19998", "19999"])] == ["19998", "19999"]
    with pytest.raises(WorkspaceError, match="is damaged"):
        read_catalogue(path, ["00000"])


@many
@given(st.lists(st.text("abc", max_size=3), unique=True), st.text(max_size=3))
def test_the_order_of_hashes_is_that_of_their_digits(texts: list[str], prefix: str) -> None:
    order = hash_order(prefix, pa.array(texts, pa.string()))
    assert [texts[place] for place in order] == sorted(
        texts, key=lambda text: hashlib.sha256(f"{prefix}{text}".encode()).hexdigest()
    )


def test_only_the_columns_asked_for_are_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raygenesis.archive import catalogue

    asked: list[list[str]] = []
    plain = catalogue.read_table
    monkeypatch.setattr(
        catalogue, "read_table", lambda *given, **options: asked.append(options["columns"]) or plain(*given, **options)
    )
    read_columns(path, ["subject_id"], ndim=3)
    assert sorted(asked[0]) == ["shape", "subject_id", "volume_id"]


def test_bytes_of_voxels_are_counted_by_shape_channels_and_type() -> None:
    kinds = [([3, 4, 5], 1, "int16"), ([300, 400], 3, "uint8"), ([7, 1, 2], 2, "float32"), ([2000] * 3, 1, "int16")]
    schema = pa.schema([CATALOGUE.field(name) for name in ("shape", "num_channels", "dtype")])
    table = pa.Table.from_pylist([dict(zip(schema.names, kind, strict=True)) for kind in kinds], schema)
    assert voxel_bytes(table) == 60 * 2 + 120_000 * 3 + 14 * 2 * 4 + 2000**3 * 2
    assert voxel_bytes(table.filter([False] * 4)) == 0
    assert voxel_bytes(pa.concat_tables([table, table])) == 2 * voxel_bytes(table)


def test_a_row_is_typed_as_the_table_has_it() -> None:
    assert get_type_hints(CatalogueRow).keys() == set(CATALOGUE.names)
