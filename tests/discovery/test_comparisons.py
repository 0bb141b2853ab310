"""The table of comparisons: the values of `likeness`, each pair once, whatever grows, is renumbered or is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import ndimage

from raygenesis.archive.catalogue import CATALOGUE
from raygenesis.archive.coarse import read_coarse
from raygenesis.archive.store import level_shape
from raygenesis.discovery.comparisons import Comparisons
from raygenesis.discovery.cubes import size_mm
from raygenesis.discovery.duplicates import FINE_GRID, ROUGH_GRID
from raygenesis.discovery.likeness import CoarseScan, likeness
from raygenesis.errors import WorkspaceError
from raygenesis.settings import IntensitySettings
from tests.support.synthetic import archived

NUM, SIDES = 6, (18, 20, 22)
LEAST = 0.97
PAIRS = np.array([(one, other) for one in range(NUM) for other in range(one + 1, NUM)])


def voxels(number: int) -> np.ndarray:
    """Scan 5 is scan 0 with some noise."""
    own = np.random.default_rng(number % 5).standard_normal(SIDES)
    noise = np.random.default_rng(99).standard_normal(SIDES) * 0.05 * (number == 5)
    return (ndimage.gaussian_filter(own, 1.5) + ndimage.gaussian_filter(noise, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    rows = [
        archived(folder / "volumes", f"s{n}", voxels(n), (1.0, 1.0, 1.0), coarse_size=max(SIDES)) for n in range(NUM)
    ]
    pq.write_table(pa.Table.from_pylist(rows, CATALOGUE), folder / "catalog.parquet")
    return folder


def comparisons(archive: Path, folder: Path, ids: list[str] | None = None) -> Comparisons:
    names = [f"s{number}" for number in range(NUM)] if ids is None else ids
    return Comparisons(folder, archive / "volumes", archive / "catalog.parquet", pa.array(names), pa.array(names))


def by_hand(archive: Path, pairs: np.ndarray, least: float) -> np.ndarray:
    """Pair by pair, of the coarse levels as they are stored."""
    rows = pq.read_table(archive / "catalog.parquet").to_pylist()
    scans = [
        CoarseScan(read_coarse(archive / "volumes", row, level_shape(row, -1), IntensitySettings()), size_mm(row))
        for row in rows
    ]
    rough = [likeness(scans[one], scans[other], ROUGH_GRID) for one, other in pairs]
    fine = [likeness(scans[one], scans[other], FINE_GRID) for one, other in pairs]
    return np.where(np.array(rough) < least, rough, fine)


def rows(folder: Path) -> list[dict[str, object]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_the_values_are_those_of_likeness_and_no_pair_is_compared_twice(ray_cluster, archive, tmp_path):
    found = comparisons(archive, tmp_path)
    some = found.of(PAIRS[:7], LEAST, "duplicates")
    alike = found.of(PAIRS, LEAST, "duplicates")
    assert np.array_equal(alike, by_hand(archive, PAIRS, LEAST))
    assert np.array_equal(alike[:7], some) and len(rows(tmp_path)) == len(PAIRS)
    assert alike[(PAIRS == (0, 5)).all(1)] > 0.985 and np.sort(alike)[-2] < LEAST
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert np.array_equal(found.of(PAIRS[::-1], LEAST, "duplicates"), alike[::-1])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files and len(files) == 2


def test_pairs_known_on_the_rough_grid_are_compared_on_the_fine_one_where_that_is_asked(ray_cluster, archive, tmp_path):
    found = comparisons(archive, tmp_path)
    before = found.of(PAIRS, LEAST, "duplicates")
    assert np.array_equal(found.of(PAIRS[:4], -np.inf, "outliers"), by_hand(archive, PAIRS[:4], -np.inf))
    assert np.array_equal(found.of(PAIRS, LEAST, "duplicates"), before)
    fine = {(row["one"], row["other"]) for row in rows(tmp_path) if row["fine"] is not None}
    assert fine == {("s0", f"s{number}") for number in range(1, 6)} and len(rows(tmp_path)) == len(PAIRS) + 4


def test_other_numbers_of_the_same_scans_change_nothing(ray_cluster, archive, tmp_path):
    before = comparisons(archive, tmp_path).of(PAIRS, LEAST, "duplicates")
    order = [4, 2, 5, 0, 3, 1]
    ids = [f"s{number}" for number in order] + ["new"]
    number_of = np.argsort(order)
    assert np.array_equal(comparisons(archive, tmp_path, ids).of(number_of[PAIRS], LEAST, "duplicates"), before)
    assert len(rows(tmp_path)) == len(PAIRS)
    anew = comparisons(archive, tmp_path / "anew", ids).of(number_of[PAIRS], LEAST, "duplicates")
    assert np.array_equal(anew, before)


def test_a_damaged_scan_is_like_nothing_known_until_it_is_whole(ray_cluster, archive, tmp_path):
    harmed = tmp_path / "archive"
    shutil.copytree(archive, harmed)
    shards = sorted((harmed / "volumes" / "s2.ome.zarr").rglob("c.*"))
    contents = {path: path.read_bytes() for path in shards}
    for path in shards:
        path.write_bytes(contents[path][:30])
    found = comparisons(harmed, tmp_path / "compared")
    alike, is_harmed = found.of(PAIRS, LEAST, "duplicates"), (PAIRS == 2).any(1)
    assert shards and np.isnan(alike[is_harmed]).all() and np.isfinite(alike[~is_harmed]).all()
    for path, content in contents.items():
        path.write_bytes(content)
    whole = comparisons(harmed, tmp_path / "compared").of(PAIRS, LEAST, "duplicates")
    assert np.isfinite(whole).all() and np.array_equal(whole[~is_harmed], alike[~is_harmed])


def test_a_damaged_part_is_one_sentence(ray_cluster, archive, tmp_path):
    found = comparisons(archive, tmp_path)
    found.of(PAIRS[:2], LEAST, "duplicates")
    (tmp_path / "part-000000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(WorkspaceError, match=r"a part of .* is damaged .*remove that folder, then run"):
        found.of(PAIRS[:2], LEAST, "duplicates")


def test_both_directions_of_a_pair_are_one_comparison(ray_cluster, archive, tmp_path):
    pairs = np.array([[0, 1], [1, 0], [2, 1], [0, 1]])
    alike = comparisons(archive, tmp_path).of(pairs, -np.inf, "outliers")
    assert len(rows(tmp_path)) == 2 and alike[0] == alike[1] == alike[3]
    assert np.isfinite(alike).all()


def test_no_pairs_are_compared_without_a_stream(archive, tmp_path):
    assert comparisons(archive, tmp_path / "none").of(PAIRS[:0], LEAST, "duplicates").shape == (0,)
    assert not (tmp_path / "none").exists()
