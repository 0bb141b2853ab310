"""The pattern store: what is written is read, K and C leave out row groups, and the same rows are the same bytes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import xxhash

from raygenesis.errors import WorkspaceError
from raygenesis.patterns.cells import decode, encode
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import PATTERN, ROWS_PER_GROUP, TRAINING, VALIDATION, PatternRow
from raygenesis.patterns.writer import checksum, part_path, read_whole_part, write_part
from raygenesis.workspace.files import BLOCK_BYTES
from tests.support.stores import finish_parts
from tests.support.synthetic import quantised

K, C, V, SCALES = 12, 20, 3, 2
SHAPE = (4, 4, 4)


def cube(pattern_id: int) -> np.ndarray:
    return np.random.default_rng(pattern_id).random(SHAPE, np.float32)


def patterns(split: str, ranks: range) -> list[dict]:
    """Rows in a plan's order: by rank, coordinate, scale."""
    rows = []
    for rank in ranks:
        for coordinate in range(C):
            for scale in range(SCALES):
                number = ((rank * C + coordinate) * SCALES + scale) * 2 + (split == VALIDATION)
                origin = [float(rank), coordinate / 3, scale / 7]
                rows.append(
                    {
                        "pattern_id": number, "label": coordinate, "reference": 0, "coordinate": coordinate,
                        "rank": rank, "scale": scale, "split": split, "volume_id": f"{split}-{rank}",
                        "origin_mm": origin, "extent_mm": [1.0, 2.0, 3.0], "origin_voxels": origin,
                        "extent_voxels": [1.0, 2.0, 3.0], "cube": encode(cube(number)),
                    }
                )  # fmt: skip
    return rows


PARTS = [patterns(TRAINING, range(0, 5)), patterns(TRAINING, range(5, K)), patterns(VALIDATION, range(1, V + 1))]
ROWS = [row for rows in PARTS for row in rows]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patterns")
    for number, rows in enumerate(PARTS):
        write_part(folder, number, pa.Table.from_pylist(rows, PATTERN))
    finish_parts(folder, len(PARTS), SHAPE)
    return folder


def groups_read(path: Path, where: pc.Expression) -> int:
    """Row groups whose statistics do not rule the predicate out."""
    fragments = ds.dataset(str(path), schema=PATTERN, format="parquet").get_fragments()
    return sum(len(fragment.split_by_row_group(where)) for fragment in fragments)


def test_what_is_written_is_read_to_the_bit_in_its_order(store):
    table = read_patterns(store)
    assert table.schema == PATTERN
    assert table.to_pylist() == ROWS
    for row in table.to_pylist()[::37]:
        np.testing.assert_array_equal(decode(row["cube"], SHAPE), quantised(cube(row["pattern_id"])))


def test_the_same_rows_are_the_same_bytes_whatever_their_chunks(store, tmp_path):
    whole = pa.Table.from_pylist(PARTS[0], PATTERN)
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 40), whole.slice(47)])
    for name, table in (("a", whole), ("b", pieces)):
        (tmp_path / name).mkdir()
        write_part(tmp_path / name, 0, table)
        assert part_path(tmp_path / name, 0).read_bytes() == part_path(store, 0).read_bytes()
        left = sorted(path.name for path in (tmp_path / name).iterdir())
        assert left == ["part-000000.json", "part-000000.parquet"]  # nothing is left aside


@pytest.mark.parametrize("split", [None, TRAINING, VALIDATION])
@pytest.mark.parametrize(
    ("k", "c", "scales"),
    [
        (None, None, None), (1, None, None), (6, None, None), (None, 5, None), (7, 3, None), (K, C, None),
        (100, 100, (0, 1)), (None, None, [1]), (3, 2, [0]), (None, 4, []),
    ],
)  # fmt: skip
def test_predicates_select_what_filtering_in_memory_selects(store, split, k, c, scales):
    expected = [
        row["pattern_id"]
        for row in ROWS
        if split in (None, row["split"])
        and (k is None or row["split"] == VALIDATION or row["rank"] < k)  # held-out patients are not counted in K
        and (c is None or row["coordinate"] < c)
        and (scales is None or row["scale"] in scales)
    ]
    found = read_patterns(store, ["pattern_id"], predicate(split, k, c, scales))
    assert found["pattern_id"].to_pylist() == expected


@pytest.mark.parametrize(("k", "c", "share"), [(1, None, 1 / 4), (3, None, 2 / 3), (None, 4, 2 / 3), (2, 4, 1 / 3)])
def test_predicates_leave_out_row_groups(store, k, c, share):
    total = pq.ParquetFile(part_path(store, 0)).num_row_groups
    assert total == -(-len(PARTS[0]) // ROWS_PER_GROUP)
    where = predicate(TRAINING, k, c)
    assert 0 < groups_read(part_path(store, 0), where) <= share * total
    if k is not None:
        assert groups_read(part_path(store, 1), where) == 0  # of the farther neighbours nothing is read
    assert groups_read(part_path(store, 2), where) == 0  # nor of those held out


def test_cells_are_not_compressed_twice_and_only_what_is_filtered_has_statistics(store):
    group = pq.ParquetFile(part_path(store, 0)).metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert columns["cube"].compression == "UNCOMPRESSED"
    assert {column.compression for name, column in columns.items() if name != "cube"} == {"ZSTD"}
    assert columns["rank"].is_stats_set and columns["coordinate"].is_stats_set and columns["split"].is_stats_set
    assert not columns["cube"].is_stats_set


def test_a_part_whose_scans_were_all_damaged_is_empty_and_harmless(store, tmp_path):
    for number, rows in enumerate([[], PARTS[1]]):
        write_part(tmp_path, number, pa.Table.from_pylist(rows, PATTERN))
    finish_parts(tmp_path, 2, SHAPE)
    assert read_patterns(tmp_path, where=predicate(TRAINING, 6)).to_pylist() == PARTS[1][: C * SCALES]


def test_a_store_without_a_manifest_is_none(tmp_path):
    write_part(tmp_path, 0, pa.Table.from_pylist(PARTS[0], PATTERN))
    with pytest.raises(WorkspaceError, match="raygenesis discover"):
        read_patterns(tmp_path)


@pytest.mark.parametrize(("name", "verb"), [("patterns", "discover"), ("crops", "crop")])
def test_a_part_that_is_cut_short_or_missing_is_named_with_the_remedy(store, tmp_path, name, verb):
    shutil.copytree(store, tmp_path / name)
    part = part_path(tmp_path / name, 1)
    part.write_bytes(part.read_bytes()[:-100])
    remedy = rf"remove it and {part.parent / 'manifest.json'}, then run `raygenesis {verb}`"
    with pytest.raises(WorkspaceError, match=rf"{part} is damaged \(.*\): {remedy}"):
        read_patterns(part.parent)
    part.unlink()
    with pytest.raises(WorkspaceError, match=rf"{part} is missing: remove .*, then run `raygenesis {verb}`"):
        read_patterns(part.parent)


@pytest.mark.parametrize(("name", "option"), [("patterns", ""), ("crops", " --store crops")])
def test_damage_that_no_footer_shows_sends_to_verify(store, tmp_path, name, option):
    shutil.copytree(store, tmp_path / name)
    part = part_path(tmp_path / name, 1)
    content = bytearray(part.read_bytes())
    content[4:40] = bytes(36)  # the first page's header
    part.write_bytes(content)
    with pytest.raises(WorkspaceError, match=rf"is damaged \(.*\): `raygenesis patterns verify{option}` names"):
        read_patterns(tmp_path / name)


def test_a_row_s_type_has_the_columns_of_the_schema():
    kinds = {int: pa.types.is_integer, str: pa.types.is_string, bytes: pa.types.is_binary}
    kinds[list[float]] = pa.types.is_list
    row = get_type_hints(PatternRow)
    assert row.keys() == set(PATTERN.names)
    assert all(kinds[kind](PATTERN.field(name).type) for name, kind in row.items())


def test_a_checksum_is_of_the_whole_file(tmp_path):
    content = np.random.default_rng(0).bytes(BLOCK_BYTES + 1234)
    (tmp_path / "part").write_bytes(content)
    expected = {"bytes": len(content), "xxh3": xxhash.xxh3_64_hexdigest(content)}
    assert asdict(checksum(tmp_path / "part")) == expected
    (tmp_path / "part").write_bytes(b"")
    assert asdict(checksum(tmp_path / "part")) == {
        "bytes": 0,
        "xxh3": "2d06800538d394c2",
    }  # of nothing, by the specification


@pytest.mark.parametrize("tree", [{}, {"part": 0}, {"checksum": {"bytes": "x", "xxh3": None}}, None])
def test_a_part_whose_record_holds_something_else_is_not_taken_for_whole(tmp_path, tree):
    record = write_part(tmp_path, 0, pa.Table.from_pylist(PARTS[0], PATTERN), [("s", "r")])
    path = part_path(tmp_path, 0)
    assert read_whole_part(path) == record and record.checksum == checksum(path)
    splits = [row["split"] for row in PARTS[0]]
    assert (record.patterns, record.validation) == (len(splits), splits.count("validation"))
    assert record.volumes == len({row["volume_id"] for row in PARTS[0]}) and record.failures == (("s", "r"),)
    beside = path.with_suffix(".json")
    beside.write_text("half a rec" if tree is None else json.dumps(tree))
    assert read_whole_part(path) is None


def test_a_part_that_was_changed_is_not_taken_for_whole(tmp_path):
    record = write_part(tmp_path, 0, pa.Table.from_pylist(PARTS[0], PATTERN))
    path = part_path(tmp_path, 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert read_whole_part(path) is None
    assert write_part(tmp_path, 0, pa.Table.from_pylist(PARTS[0], PATTERN)) == record == read_whole_part(path)
    path.unlink()
    assert read_whole_part(path) is None


def test_files_that_are_no_part_of_the_store_are_not_read(store, tmp_path):
    for number, rows in enumerate(PARTS):
        write_part(tmp_path, number, pa.Table.from_pylist(rows, PATTERN))
    finish_parts(tmp_path, 2, SHAPE)
    (tmp_path / ".part-000001.parquet.0123abcd").write_bytes(b"half a part")
    assert read_patterns(tmp_path).to_pylist() == PARTS[0] + PARTS[1]
