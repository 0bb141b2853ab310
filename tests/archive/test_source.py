"""The source: whole scans in their places at one shape; a damaged volume is a row that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle
from scipy.ndimage import map_coordinates

from raygenesis.archive.cells import STEPS, decode
from raygenesis.archive.source import SCHEMA, CoarseSource, parts_of, read_coarse
from raygenesis.config import IntensitySettings
from raygenesis.errors import ScanError
from tests.synthetic import archived, imaged

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
    row = archived(tmp_path, "a", hounsfield - 100, (1, 1, 1), low=-500.0, high=2000.0, intercept=100.0)
    window = IntensitySettings(window=(-1000, 1000))
    assert np.allclose(
        read_coarse(tmp_path, row, SHAPE, window), np.clip((hounsfield + 1000.0) / 2000, 0, 1), atol=1e-5
    )
    assert np.allclose(
        read_coarse(tmp_path, row, SHAPE, OWN), np.clip((hounsfield + 400.0) / 2500, 0, 1), atol=1e-5
    )


def test_radiographs_have_two_sides(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((9, 12), np.float32)
    row = archived(tmp_path, "a", image, (1, 1))
    assert np.allclose(read_coarse(tmp_path, row, (18, 24), OWN), stretched(image, (18, 24)), atol=1e-5)


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [archived(tmp_path, f"v{n}", generator.random((20, 20, 20), np.float32), (1, 1, 1), 8) for n in range(5)]


def tables(source: CoarseSource, **arguments: Any) -> list[pa.Table]:
    """Each read task's block, from a copy as a worker gets it."""
    copies = [cloudpickle.loads(cloudpickle.dumps(task.read_fn)) for task in source.get_read_tasks(**arguments)]
    return [pa.concat_tables(read()) for read in copies]


@pytest.mark.parametrize("parallelism", [1, 100])
def test_one_block_per_part_whatever_the_parallelism(tmp_path: Path, rows: list[dict[str, Any]], parallelism) -> None:
    source = CoarseSource(tmp_path, parts_of(rows, 2), SHAPE, OWN)
    blocks = tables(source, parallelism=parallelism)
    assert [block["number"].to_pylist() for block in blocks] == [[0, 1], [2, 3], [4]]
    assert [task.metadata.num_rows for task in source.get_read_tasks(parallelism)] == [2, 2, 1]
    assert all(block.schema == SCHEMA for block in blocks)
    for row in (row for block in blocks for row in block.to_pylist()):
        expected = read_coarse(tmp_path, rows[row["number"]], SHAPE, OWN)
        assert row["volume_id"] == rows[row["number"]]["volume_id"] and row["failure"] == ""
        assert np.abs(decode(row["cube"], SHAPE) - expected).max() <= 0.5 / STEPS + 1e-6
    assert source.estimate_inmemory_data_size() == 5 * 8**3 * 2


def test_reading_again_gives_the_same_bytes(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    source = CoarseSource(tmp_path, parts_of(rows, 3), SHAPE, OWN)
    assert tables(source, parallelism=1) == tables(source, parallelism=1)


def test_a_damaged_volume_says_so_in_its_row_and_the_others_are_read(tmp_path: Path, rows) -> None:
    coarsest = len(rows[1]["levels"]) - 1
    (chunk,) = (path for path in (tmp_path / f"v1.ome.zarr/{coarsest}/c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(ScanError, match=r"v1\.ome\.zarr level 2 is damaged"):
        read_coarse(tmp_path, rows[1], SHAPE, OWN)
    (tmp_path / "v3.ome.zarr/2/zarr.json").unlink()
    (block,) = tables(CoarseSource(tmp_path, parts_of(rows, 5), SHAPE, OWN), parallelism=1)
    failures = block["failure"].to_pylist()
    assert "v1.ome.zarr level 2 is damaged" in failures[1] and "v3.ome.zarr level 2 cannot be opened" in failures[3]
    assert [bool(failure) for failure in failures] == [not cube for cube in block["cube"].to_pylist()]
    assert sum(map(bool, failures)) == 2


def test_ray_reads_what_the_tasks_read(ray_cluster: None, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    import ray.data

    source = CoarseSource(tmp_path, parts_of(rows, 2), SHAPE, OWN)
    read = sorted(ray.data.read_datasource(source).take_all(), key=lambda row: row["number"])
    assert read == pa.concat_tables(tables(source, parallelism=1)).to_pylist()
