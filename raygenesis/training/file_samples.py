"""Samples whose cells stay in the files of a store, for stores that are too large for memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raygenesis.patterns.cell_reader import FETCHED_PARTS, cell_reader, locate_cells
from raygenesis.patterns.reader import TRAINING_COLUMNS, damaged, predicate
from raygenesis.patterns.writer import part_path
from raygenesis.training.feeding import Batch, Samples
from raygenesis.workspace.files import Place
from raygenesis.workspace.object_store import RemotePath


@dataclass(frozen=True)
class StoredPatterns:
    """Patterns of a split, of K neighbours and C coordinates (all when None), which each worker opens for itself."""

    folder: Place
    split: str
    num_neighbours: int | None = None
    num_coordinates: int | None = None

    def open(self, key: str, shape: Sequence[int]) -> Samples:
        """Open them. Raises WorkspaceError if a part is missing or damaged."""
        return StoredSamples(self, key, shape)


class StoredSamples(Samples):
    """Samples whose cells are read from the store's files when a batch needs them."""

    def __init__(self, patterns: StoredPatterns, key: str, shape: Sequence[int]) -> None:
        where = predicate(patterns.split, patterns.num_neighbours, patterns.num_coordinates)
        names = [name for name in TRAINING_COLUMNS if name != "cube"]
        table = locate_cells(patterns.folder, where, names)
        self._folder = patterns.folder
        self._parts, self._groups, self._rows = (table[name].to_numpy() for name in ("part", "group", "row"))
        self._read = cell_reader(patterns.folder)
        self._fetched: dict[tuple[int, int], pa.ChunkedArray] = {}  # of the newest batch, from a remote store
        self._number(table.select(names), key, shape)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        if isinstance(self._folder, RemotePath):
            self._fetched = self._fetch(self._where[indices])
        return super().batch(indices)

    def _fetch(self, rows: NDArray[np.int64]) -> dict[tuple[int, int], pa.ChunkedArray]:
        """The row groups of some rows by part and group, from several parts at a time: a request takes long."""
        groups: dict[int, list[int]] = {}
        for part, group in sorted(set(zip(self._parts[rows].tolist(), self._groups[rows].tolist(), strict=True))):
            groups.setdefault(part, []).append(group)

        def fetch(part: int) -> list[tuple[tuple[int, int], pa.ChunkedArray]]:
            return [((part, group), self._group(part, group)) for group in groups[part]]

        with ThreadPoolExecutor(FETCHED_PARTS) as pool:
            return dict(itertools.chain.from_iterable(pool.map(fetch, groups)))

    def _cell(self, row: int) -> memoryview:
        part, group, place = (int(column[row]) for column in (self._parts, self._groups, self._rows))
        cells = self._fetched.get((part, group))
        return memoryview((self._group(part, group) if cells is None else cells)[place].as_buffer())

    def _group(self, part: int, group: int) -> pa.ChunkedArray:
        try:
            return self._read(part, group)
        except (ValueError, OSError) as error:
            raise damaged(part_path(self._folder, part), error) from None
