"""Compares scans by their coarse voxels, a batch of pairs at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue
from raygenesis.archive.coarse import read_coarse
from raygenesis.archive.store import level_shape
from raygenesis.discovery.cubes import size_mm
from raygenesis.discovery.duplicates import FINE_GRID, ROUGH_GRID
from raygenesis.discovery.likeness import CoarseScan, likeness
from raygenesis.errors import ScanError
from raygenesis.settings import IntensitySettings
from raygenesis.workspace.files import Place

SCANS_IN_MEMORY = 64


@dataclass(frozen=True)
class Comparer:
    """Compares pairs of scans (a batch of Ray Data), on the fine grid where they are alike on the rough one.

    volumes, catalog: of the archive. least: likeness on the rough grid. Scans are read as their voxels are, whatever
    the intensities of a pretraining.
    """

    volumes: Place
    catalog: Place
    least: float

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """The pairs (columns one, other: keys of volumes) with their likeness: rough and fine.

        Null where it was not looked for; both are null where a scan is damaged.
        """
        ones, others = pairs["one"].to_pylist(), pairs["other"].to_pylist()
        id_of = {key: key.partition("/")[0] for key in {*ones, *others}}
        rows = {row["volume_id"]: row for row in read_catalogue(self.catalog, set(id_of.values()))}
        read = functools.lru_cache(SCANS_IN_MEMORY)(lambda key: self._read(rows[id_of[key]]))
        alike = np.array([self._compared(read(one), read(other)) for one, other in zip(ones, others, strict=True)])
        for name, values in zip(("rough", "fine"), alike.T, strict=True):
            pairs = pairs.append_column(name, pa.array(values, from_pandas=True))
        return pairs

    def _compared(self, one: CoarseScan | None, other: CoarseScan | None) -> tuple[float, float]:
        if one is None or other is None:
            return np.nan, np.nan
        rough = likeness(one, other, ROUGH_GRID)
        return rough, np.nan if rough < self.least else likeness(one, other, FINE_GRID)

    def _read(self, row: CatalogueRow) -> CoarseScan | None:
        try:
            return CoarseScan(read_coarse(self.volumes, row, level_shape(row, -1), IntensitySettings()), size_mm(row))
        except ScanError:
            return None
