"""What neighbours say of each scan: whose copy it is, whether it stands alone, which group it is of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue, read_columns
from raygenesis.archive.coarse import read_coarse
from raygenesis.archive.store import level_shape
from raygenesis.cluster import fan_out
from raygenesis.cluster.progress import progress
from raygenesis.discovery.cubes import size_mm
from raygenesis.discovery.duplicates import (
    COPY_LIKENESS,
    FINE_GRID,
    ROUGH_GRID,
    ROUGH_LIKENESS,
    candidates,
    first_copies,
)
from raygenesis.discovery.exact import Neighbours
from raygenesis.discovery.groups import groups_of
from raygenesis.discovery.likeness import CoarseScan, likeness
from raygenesis.discovery.neighbour_table import among
from raygenesis.discovery.outliers import NUM_COMPARED, NUM_USUAL, SPARSE, outliers, radii, sparsity
from raygenesis.discovery.scan_table import SCANS
from raygenesis.errors import ScanError
from raygenesis.settings import IntensitySettings
from raygenesis.settings.streams import USUAL_SCANS
from raygenesis.workspace.files import Place
from raygenesis.workspace.workspace import Workspace

PAIRS_PER_TASK = 256
SCANS_IN_MEMORY = 64


@dataclass(frozen=True)
class Comparer:
    """Compares scans of an archive by their coarse voxels. volumes, catalog: of its volumes, and its catalogue.

    Scans are read as their voxels are, whatever the intensities of a pretraining.
    """

    volumes: Place
    catalog: Place

    def compare(self, pairs: Sequence[tuple[str, str]], least: float) -> NDArray[np.float64]:
        """The likeness of pairs of volumes; on the rough grid where that is less than `least`, NaN of damaged ones."""
        names = {name for pair in pairs for name in pair}
        rows = {row["volume_id"]: row for row in read_catalogue(self.catalog, names)}
        read = functools.lru_cache(SCANS_IN_MEMORY)(lambda name: self._read(rows[name]))
        return np.array([self._compared(read(one), read(other), least) for one, other in pairs])

    def _compared(self, one: CoarseScan | None, other: CoarseScan | None, least: float) -> float:
        if one is None or other is None:
            return np.nan
        rough = likeness(one, other, ROUGH_GRID)
        return rough if rough < least else likeness(one, other, FINE_GRID)

    def _read(self, row: CatalogueRow) -> CoarseScan | None:
        try:
            return CoarseScan(read_coarse(self.volumes, row, level_shape(row, -1), IntensitySettings()), size_mm(row))
        except ScanError:
            return None


def _compare(
    batch: tuple[int, Sequence[tuple[str, str]]], comparer: Comparer, least: float
) -> tuple[int, NDArray[np.float64]]:
    return batch[0], comparer.compare(batch[1], least)


def in_archive(catalog: Place, ids: pa.StringArray) -> NDArray[np.bool_]:
    """Whether each volume is in the archive still: embeddings of those that left it stay."""
    known = read_columns(catalog, ["volume_id"])["volume_id"]
    there: NDArray[np.bool_] = pc.is_in(ids, value_set=known).to_numpy(zero_copy_only=False)
    return there


def scan_facts(
    workspace: Workspace, ids: pa.StringArray, is_there: NDArray[np.bool_], found: Neighbours, seed: int
) -> pa.Table:
    """The table (schema SCANS) of the scans that are in the archive, bool [n], in order of their number.

    ids: by number; found: the neighbours of each, padded by infinity.
    """
    comparison = Comparison(Comparer(workspace.volumes, workspace.catalog), ids)
    pairs = candidates(found)
    alike = comparison.of(pairs, ROUGH_LIKENESS, "duplicates")
    is_copy = alike >= COPY_LIKENESS
    first = first_copies(pairs[is_copy], len(ids))
    near = among(found, is_there & (first == np.arange(len(ids))))
    radius = radii(near)
    sparse = sparsity(near, radius)
    is_outlier = np.zeros(len(ids), bool)
    is_outlier[_outliers(comparison, near, sparse, seed)] = True
    group = groups_of(near, radius, is_outlier | ~is_there | (first != np.arange(len(ids))))
    best = _likeness_to_first(pairs[is_copy], alike[is_copy], first)
    nearest = np.where(np.isfinite(found.distances[:, 0]), found.distances[:, 0], np.nan)
    columns = {
        "volume_id": ids,
        "nearest_distance": pa.array(nearest, pa.float32(), from_pandas=True),
        "duplicate_of": pc.if_else(pa.array(first == np.arange(len(ids))), "", ids.take(pa.array(first))),
        "likeness": pa.array(best, pa.float32(), from_pandas=True),
        "sparsity": sparse[first], "is_outlier": is_outlier[first], "group": group[first],
    }  # fmt: skip
    return pa.table(columns).cast(SCANS).filter(pa.array(is_there))


@dataclass(frozen=True)
class Comparison:
    """Compares scans by number, in tasks. ids: volume ids by number."""

    comparer: Comparer
    ids: pa.StringArray

    def of(self, pairs: NDArray[np.int64], least: float, what: str) -> NDArray[np.float64]:
        """The likeness of pairs [p, 2]; see `Comparer.compare`."""
        first, second = (self.ids.take(pa.array(column)).to_pylist() for column in pairs.T)
        names = list(zip(first, second, strict=True))
        batches = [(start, names[start : start + PAIRS_PER_TASK]) for start in range(0, len(names), PAIRS_PER_TASK)]
        alike = np.full(len(names), np.nan)
        if batches:
            with progress(what, len(names), "pairs") as ticker:
                for start, values in fan_out.each(_compare, batches, self.comparer, least):
                    alike[start : start + len(values)] = values
                    ticker.advance(len(values))
        return alike


def _outliers(comparison: Comparison, near: Neighbours, sparse: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Numbers of the outliers among the scans that have neighbours."""
    has_some = near.numbers[:, 0] >= 0
    suspects = np.flatnonzero(has_some & (sparse > SPARSE))
    usual = USUAL_SCANS.generator(seed).permutation(np.flatnonzero(has_some & (sparse <= SPARSE)))[:NUM_USUAL]
    if not len(suspects):
        return suspects
    scans = np.concatenate([suspects, usual])
    others = near.numbers[scans, :NUM_COMPARED]
    own = np.broadcast_to(scans[:, None], others.shape)
    alike = np.full(others.shape, np.nan)
    alike[others >= 0] = comparison.of(np.stack([own[others >= 0], others[others >= 0]], 1), -np.inf, "outliers")
    return outliers(suspects, alike[: len(suspects)], alike[len(suspects) :])


def _likeness_to_first(
    pairs: NDArray[np.int64], alike: NDArray[np.float64], first: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each copy the greatest likeness to a scan that is the same; NaN of the others."""
    best = np.full(len(first), np.nan)
    for column in (0, 1):
        np.fmax.at(best, pairs[:, column], alike)
    best[first == np.arange(len(first))] = np.nan
    return best
