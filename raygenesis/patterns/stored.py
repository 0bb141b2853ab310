"""The cells of a pattern store where they lie, for what is too large to be held in memory."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raygenesis.files import Place, parquet_file
from raygenesis.patterns.reader import TRAINING_COLUMNS, damaged, part_paths, predicate, row_groups
from raygenesis.patterns.writer import part_path
from raygenesis.remote import RemotePath
from raygenesis.training.feeding import Batch, Samples

# Of each process: parts that stay open, with their footers, and row groups whose cells stay in memory, encoded.
OPEN_PARTS, CACHED_GROUPS = 64, 8

FETCHED_PARTS = 16  # of a remote store at a time

CellReader = Callable[[int, int], pa.ChunkedArray]


@dataclass(frozen=True)
class StoredPatterns:
    """The patterns of a split, of K neighbours and C coordinates (all when None), to be opened by each worker."""

    folder: Place
    split: str
    num_neighbours: int | None = None
    num_coordinates: int | None = None

    def open(self, key: str, shape: Sequence[int]) -> Samples:
        """Raises WorkspaceError if a part is missing or damaged."""
        return StoredSamples(self, key, shape)


class StoredSamples(Samples):
    """Samples whose cells are read from the store's files when a batch needs them."""

    def __init__(self, patterns: StoredPatterns, key: str, shape: Sequence[int]) -> None:
        where = predicate(patterns.split, patterns.num_neighbours, patterns.num_coordinates)
        names = [name for name in TRAINING_COLUMNS if name != "cube"]
        table = places(patterns.folder, where, names)
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


def places(folder: Place, where: Any, names: Sequence[str]) -> pa.Table:
    """The selected rows of a store: columns of these names, and `part`, `group` and `row`, where their cells are."""
    paths = part_paths(folder)
    with ThreadPoolExecutor(FETCHED_PARTS if isinstance(folder, RemotePath) else 1) as pool:
        found = pool.map(lambda part: _places(paths[part], part, where, names), range(len(paths)))
        return pa.concat_tables(found)


def _places(path: Place, part: int, where: Any, names: Sequence[str]) -> pa.Table:
    groups = row_groups(path, where)
    needed = dict.fromkeys([*names, "rank", "coordinate", "scale", "split"])  # by the predicate
    try:
        # What lies together of a remote part is fetched in one request, and several at a time.
        part_file = parquet_file(path, pre_buffer=isinstance(path, RemotePath))
        table = part_file.read_row_groups([group.id for group in groups], columns=list(needed))
    except (ValueError, OSError) as error:
        raise damaged(path, error) from None
    sizes = np.array([group.num_rows for group in groups], np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    numbers = {
        "part": np.full(len(starts), part, np.int32),
        "group": np.repeat(np.array([group.id for group in groups], np.int32), sizes),
        "row": (np.arange(len(starts)) - starts).astype(np.int32),
    }
    for name, column in numbers.items():
        table = table.append_column(name, pa.array(column))
    return table.filter(where).select([*names, *numbers])


def cell_reader(folder: Place) -> CellReader:
    """A function of part and row group → the group's cells. It keeps some files open and some cells in memory."""

    @functools.lru_cache(OPEN_PARTS)
    def open_part(part: int, process: int) -> pq.ParquetFile:
        return parquet_file(part_path(folder, part))

    @functools.lru_cache(CACHED_GROUPS)
    def read(part: int, group: int) -> pa.ChunkedArray:
        # A process that was forked from one that had opened the part opens it anew.
        return open_part(part, os.getpid()).read_row_group(group, columns=["cube"], use_threads=False)["cube"]

    return read
