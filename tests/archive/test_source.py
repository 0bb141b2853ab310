"""The source: whole scans in their places at one shape; a damaged volume is a row that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle
from scipy.ndimage import map_coordinates

from raygenesis.archive.catalogue import CATALOGUE, CatalogueRows
from raygenesis.archive.coarse import read_coarse
from raygenesis.archive.source import (
    MIN_BLOCKS,
    parts_of,
    read_archive,
    volume_rows,
    voxels_of,
)
from raygenesis.archive.store import read_region, volume_folder
from raygenesis.cluster.streams import PartSource
from raygenesis.discovery.coarse_scans import COARSE_SCHEMA, coarse_cubes
from raygenesis.errors import ScanError, SettingsError, WorkspaceError
from raygenesis.patterns.cells import STEPS, decode
from raygenesis.settings import IntensitySettings
from raygenesis.workspace.files import write_table
from raygenesis.workspace.workspace import Workspace
from tests.support.synthetic import archived, imaged

OWN = IntensitySettings()
SHAPE = (8, 8, 8)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_parts_are_the_rows_in_order_each_with_the_number_of_its_first(rows, rows_per_part) -> None:
    parts = parts_of(rows, rows_per_part)
    assert [row for _, part in parts for row in part] == rows
    assert [rows[start] for start, _ in parts] == [part[0] for _, part in parts]
    assert [len(part) for _, part in parts[:-1]] == [rows_per_part] * (len(parts) - 1)
    assert all(1 <= len(part) <= rows_per_part for _, part in parts)


def stretched(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """SciPy's linear interpolation of the whole field of view to a finer grid."""
    centres = [(np.arange(n) + 0.5) * side / n - 0.5 for side, n in zip(voxels.shape, shape, strict=True)]
    return map_coordinates(voxels.astype(float), np.meshgrid(*centres, indexing="ij"), order=1, mode="nearest")


def test_a_small_scan_is_interpolated_to_the_shape(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).random((5, 8, 7), np.float32)
    row = archived(tmp_path, "a", voxels, (2, 1, 1))
    assert np.allclose(read_coarse(tmp_path, row, (10, 8, 16), OWN), stretched(voxels, (10, 8, 16)), atol=1e-5)


@pytest.mark.parametrize("side", [33, 34, 35, 36, 37, 63, 64, 65])
@pytest.mark.parametrize("num_out", [8, 16, 24])
def test_a_large_scan_keeps_its_places_through_the_pyramid(tmp_path: Path, side: int, num_out: int) -> None:
    """Also where sides are odd, so that the last coarse voxel reaches beyond the scan."""
    voxels = imaged(lambda z, y, x: (z + 2 * y + 3 * x) / (6 * side), (side,) * 3, (1, 1, 1))
    row = archived(tmp_path, "a", voxels, (1, 1, 1), coarse_size=16)
    out = read_coarse(tmp_path, row, (num_out,) * 3, OWN)
    z, y, x = (np.indices(out.shape) + 0.5) * side / num_out
    inner = (slice(num_out // 6 + 1, -num_out // 6 - 1),) * 3
    voxel = side / min(num_out, 16)
    assert out.shape == (num_out,) * 3 and out.dtype == np.float32
    assert np.abs(out - (z + 2 * y + 3 * x) / (6 * side))[inner].max() < voxel / side / 12


def test_values_are_normalised_as_the_settings_say(tmp_path: Path) -> None:
    hounsfield = np.random.default_rng(0).integers(-1024, 3000, SHAPE).astype(np.int16)
    row = archived(tmp_path, "a", hounsfield - 100, (1, 1, 1), low=[-500.0], high=[2000.0], intercept=100.0)
    window = IntensitySettings(window=(-1000, 1000))
    assert np.allclose(
        read_coarse(tmp_path, row, SHAPE, window), np.clip((hounsfield + 1000.0) / 2000, 0, 1), atol=1e-5
    )
    assert np.allclose(read_coarse(tmp_path, row, SHAPE, OWN), np.clip((hounsfield + 400.0) / 2500, 0, 1), atol=1e-5)


def test_radiographs_have_two_sides(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((9, 12), np.float32)
    row = archived(tmp_path, "a", image, (1, 1))
    assert np.allclose(read_coarse(tmp_path, row, (18, 24), OWN), stretched(image, (18, 24)), atol=1e-5)


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [archived(tmp_path, f"v{n}", generator.random((20, 20, 20), np.float32), (1, 1, 1), 8) for n in range(5)]


def tables(source: PartSource, **arguments: Any) -> list[pa.Table]:
    """Each read task's block, from a copy as a worker gets it."""
    copies = [cloudpickle.loads(cloudpickle.dumps(task.read_fn)) for task in source.get_read_tasks(**arguments)]
    return [pa.concat_tables(read()) for read in copies]


@pytest.mark.parametrize("parallelism", [1, 100])
def test_one_block_per_part_whatever_the_parallelism(tmp_path: Path, rows: list[dict[str, Any]], parallelism) -> None:
    source = coarse_cubes(tmp_path, parts_of(rows, 2), SHAPE, OWN)
    blocks = tables(source, parallelism=parallelism)
    assert [block["number"].to_pylist() for block in blocks] == [[0, 1], [2, 3], [4]]
    assert [task.metadata.num_rows for task in source.get_read_tasks(parallelism)] == [2, 2, 1]
    assert all(block.schema == COARSE_SCHEMA for block in blocks)
    for row in (row for block in blocks for row in block.to_pylist()):
        expected = read_coarse(tmp_path, rows[row["number"]], SHAPE, OWN)
        assert row["volume_id"] == rows[row["number"]]["volume_id"] and row["failure"] == ""
        assert np.abs(decode(row["cube"], SHAPE) - expected).max() <= 0.5 / STEPS + 1e-6
    assert source.estimate_inmemory_data_size() == 5 * 8**3 * 2


def test_reading_again_gives_the_same_bytes(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    source = coarse_cubes(tmp_path, parts_of(rows, 3), SHAPE, OWN)
    assert tables(source, parallelism=1) == tables(source, parallelism=1)


def test_a_part_of_volume_ids_is_read_as_its_rows_and_weighs_little(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write_table(tmp_path / "catalog.parquet", pa.Table.from_pylist(rows, CATALOGUE))
    ids = [row["volume_id"] for row in rows]
    parts = [(start, CatalogueRows(tmp_path / "catalog.parquet", there)) for start, there in parts_of(ids, 2)]
    source = coarse_cubes(tmp_path, parts, SHAPE, OWN)
    assert tables(source, parallelism=1) == tables(coarse_cubes(tmp_path, parts_of(rows, 2), SHAPE, OWN), parallelism=1)
    many = coarse_cubes(tmp_path, [(0, CatalogueRows(tmp_path, [f"{n:016x}" for n in range(1000)]))], SHAPE, OWN)
    few = coarse_cubes(tmp_path, [(0, CatalogueRows(tmp_path, []))], SHAPE, OWN)
    one, none = (len(cloudpickle.dumps(source.get_read_tasks(1))) for source in (many, few))
    assert one - none < 1000 * 25


def test_a_damaged_volume_says_so_in_its_row_and_the_others_are_read(tmp_path: Path, rows) -> None:
    coarsest = len(rows[1]["levels"]) - 1
    (chunk,) = (tmp_path / f"v1.ome.zarr/{coarsest}").glob("c.*")
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(ScanError, match=r"v1\.ome\.zarr level 2 is damaged"):
        read_coarse(tmp_path, rows[1], SHAPE, OWN)
    (tmp_path / "v3.ome.zarr/2/zarr.json").unlink()
    (block,) = tables(coarse_cubes(tmp_path, parts_of(rows, 5), SHAPE, OWN), parallelism=1)
    failures = block["failure"].to_pylist()
    assert "v1.ome.zarr level 2 is damaged" in failures[1] and "v3.ome.zarr level 2 cannot be opened" in failures[3]
    assert [bool(failure) for failure in failures] == [cube is None for cube in block["cube"].to_pylist()]
    assert sum(map(bool, failures)) == 2


def test_ray_reads_what_the_tasks_read(ray_cluster: None, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    import ray.data

    source = coarse_cubes(tmp_path, parts_of(rows, 2), SHAPE, OWN)
    read = sorted(ray.data.read_datasource(source).take_all(), key=lambda row: row["number"])
    assert read == pa.concat_tables(tables(source, parallelism=1)).to_pylist()


def test_one_channel_is_read(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).random((3, 9, 8, 7), np.float32)
    row = archived(tmp_path, "a", voxels, (1, 1, 1), low=[0.0, 0.5, 0.0], high=[1.0, 1.0, 0.5])
    second = read_coarse(tmp_path, row, (9, 8, 7), IntensitySettings(channel=1))
    assert np.allclose(second, np.clip((voxels[1] - 0.5) * 2, 0, 1), atol=1e-5)
    with pytest.raises(ScanError, match=r"3 channels, and intensity\.channel=3"):
        read_coarse(tmp_path, row, (9, 8, 7), IntensitySettings(channel=3))


# --- volumes as they are stored -------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Five volumes of different shapes, spacings and types, among them channels and a radiograph."""
    made = Workspace.open(tmp_path / "workspace")
    shapes = [((20, 21, 22), (2, 1, 1)), ((9, 8, 7), (1, 1, 1)), ((3, 17, 18, 19), (1, 0.5, 2)),
              ((40, 30), (0.2, 0.3)), ((33, 34, 35), (1.5, 1.5, 1.5))]  # fmt: skip
    rows = []
    for number, (shape, spacing) in enumerate(shapes):
        voxels = np.random.default_rng(number).integers(-500, 500, shape).astype(("int16", "int32")[number % 2])
        rows.append(archived(made.volumes, f"v{number}", voxels, spacing, 16, modality="CT"))
    write_table(made.catalog, pa.Table.from_pylist(rows, CATALOGUE))
    return made


def stored(workspace: Workspace, row: dict[str, Any], level: int) -> np.ndarray:
    """A whole level, every channel of it."""
    everything = (slice(None),) * len(row["shape"])
    folder = volume_folder(workspace.volumes, row["volume_id"])
    channels = [read_region(folder, level, everything, channel) for channel in range(row["num_channels"])]
    return np.stack(channels) if len(channels) > 1 else channels[0]


def catalogue(workspace: Workspace) -> list[dict[str, Any]]:
    return pq.read_table(workspace.catalog).to_pylist()


@pytest.mark.parametrize("level", [0, 1, 7, -1])
def test_every_volume_is_a_row_of_its_voxels_and_the_columns_asked_for(ray_cluster, workspace, level) -> None:
    read = read_archive(workspace, ["modality", "spacing_mm"], level).take_all()
    rows = catalogue(workspace)
    assert [row["volume_id"] for row in sorted(read, key=lambda row: row["number"])] == [f"v{n}" for n in range(5)]
    for row in read:
        known = rows[row["number"]]
        there = len(known["levels"]) - 1
        assert list(row) == [
            "number", "volume_id", "modality", "spacing_mm", "voxels", "voxels_shape", "voxels_dtype", "failure",
        ]  # fmt: skip
        voxels = voxels_of(row)
        assert row["failure"] == "" and voxels.dtype == known["dtype"] and not voxels.flags.writeable
        assert np.array_equal(voxels, stored(workspace, known, there if level == -1 else min(level, there)))
        assert (row["modality"], list(row["spacing_mm"])) == ("CT", known["spacing_mm"])


def test_some_volumes_by_id_and_by_name_of_the_folder(ray_cluster, workspace) -> None:
    read = read_archive(str(workspace.root), volume_ids=["v4", "v1"]).take_all()
    assert [(row["number"], row["volume_id"]) for row in read] == [(0, "v1"), (1, "v4")]


def test_what_is_not_there_is_said(workspace, tmp_path) -> None:
    with pytest.raises(SettingsError, match="columns: the catalogue has no 'colour'; it has volume_id, subject_id"):
        read_archive(workspace, ["modality", "colour"])
    with pytest.raises(SettingsError, match="volume_ids: the archive has no volume 'w'"):
        read_archive(workspace, volume_ids=["v1", "w"])
    with pytest.raises(WorkspaceError, match="does not exist"):
        read_archive(tmp_path / "nowhere")
    with pytest.raises(WorkspaceError, match="run `raygenesis ingest` first"):
        read_archive(Workspace.open(tmp_path / "empty"))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_region_in_mm_is_the_voxels_that_lie_in_it(regions, data) -> None:
    """At least in part: those whose own extent overlaps the region's."""
    workspace = regions
    rows = [row for row in catalogue(workspace) if len(row["shape"]) == 3]
    origin = data.draw(st.tuples(*[st.integers(-8, 60).map(lambda n: n / 2)] * 3))
    extent = data.draw(st.tuples(*[st.integers(1, 60).map(lambda n: n / 2)] * 3))
    level = data.draw(st.sampled_from([0, 1, -1]))
    source = volume_rows(workspace.volumes, rows, level=level, region_mm=(origin, extent))
    read = pa.concat_tables(tables(source, parallelism=1)).to_pylist()
    num_bytes = 0
    for row, known in zip(read, rows, strict=True):
        at = len(known["levels"]) - 1 if level == -1 else min(level, len(known["levels"]) - 1)
        expected = stored(workspace, known, at)
        for axis, (begin, length) in enumerate(zip(origin, extent, strict=True), expected.ndim - 3):
            number = axis - (expected.ndim - 3)
            edges = np.arange(expected.shape[axis] + 1) * known["levels"][at][number] * known["spacing_mm"][number]
            inside = (edges[1:] > begin + 1e-5) & (edges[:-1] < begin + length - 1e-5)
            expected = np.compress(inside, expected, axis)
        assert np.array_equal(voxels_of(row), expected)
        num_bytes += len(row["voxels"])
    assert source.estimate_inmemory_data_size() == num_bytes


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return workspace.__wrapped__(tmp_path_factory.mktemp("regions"))


def test_sizes_that_ray_is_told_are_the_bytes_it_gets(workspace) -> None:
    source = volume_rows(workspace.volumes, catalogue(workspace), level=1)
    blocks = tables(source, parallelism=1)
    got = [sum(map(len, block["voxels"].to_pylist())) for block in blocks]
    assert [task.metadata.size_bytes for task in source.get_read_tasks(1)] == got
    assert source.estimate_inmemory_data_size() == sum(got)


def test_parts_hold_about_equal_bytes_in_order(tmp_path: Path) -> None:
    sides = np.random.default_rng(0).integers(10, 60, 1000)
    rows = [
        {"volume_id": f"{n:04d}", "shape": [int(side)] * 3, "levels": [[1, 1, 1]], "num_channels": 1, "dtype": "uint8"}
        for n, side in enumerate(sides)
    ]
    source = volume_rows(tmp_path, rows)
    tasks = source.get_read_tasks(1)
    sizes, most = [task.metadata.size_bytes for task in tasks], int(sides.max()) ** 3
    assert MIN_BLOCKS <= len(tasks) <= 2 * MIN_BLOCKS
    assert sum(sizes) == source.estimate_inmemory_data_size() == int((sides**3).sum())
    assert max(sizes) <= max(most, sum(sizes) // MIN_BLOCKS)
    assert sum(task.metadata.num_rows for task in tasks) == 1000
    assert volume_rows(tmp_path, []).get_read_tasks(1) == []


def test_a_corrupt_chunk_is_a_row_that_says_so(ray_cluster, workspace) -> None:
    (chunk,) = (workspace.volumes / "v1.ome.zarr/0").glob("c.*")
    content = bytearray(chunk.read_bytes())
    content[20] ^= 1
    chunk.write_bytes(content)
    read = {row["volume_id"]: row for row in read_archive(workspace, ["modality"]).take_all()}
    assert "v1 is damaged" in read["v1"]["failure"] and read["v1"]["number"] == 1
    assert all(read["v1"][name] is None for name in ("voxels", "voxels_shape", "voxels_dtype", "modality"))
    assert [row["failure"] for name, row in read.items() if name != "v1"] == [""] * 4
