"""Samples whose cells are in the files of a store, of which each row group is read once an epoch, ahead of its use."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from raygenesis.patterns.cell_reader import FETCHED_PARTS, cell_reader, locate_cells
from raygenesis.patterns.cells import DTYPE
from raygenesis.patterns.reader import TRAINING_COLUMNS, damaged, predicate
from raygenesis.patterns.schema import ROWS_PER_GROUP
from raygenesis.patterns.writer import part_path
from raygenesis.text.amounts import GIB
from raygenesis.training.feeding import Samples, Stream
from raygenesis.training.order import NUM_STREAMS, Layout, Rows
from raygenesis.workspace.files import Place
from raygenesis.workspace.object_store import RemotePath

BATCHES_AHEAD = 16  # whose row groups are read before they are needed
WINDOW_BYTES = GIB  # of cubes among which the order is random, decoded
GROUPS_PER_PART = 1 << 20  # at the most


def usual_window(shape: Sequence[int]) -> int:
    """Row groups of cubes of a shape that a window holds: WINDOW_BYTES of them, and two a stream at least."""
    return max(WINDOW_BYTES // (ROWS_PER_GROUP * int(np.prod(shape)) * DTYPE.itemsize), 2 * NUM_STREAMS)


@dataclass(frozen=True)
class StoredPatterns:
    """Patterns of a split, of K neighbours and C coordinates (all when None), which each worker opens for itself.

    num_decoders: threads that read, and as many that decode. memory_gib: cells stay in a worker's memory once read if
    all of them are no more. window: row groups among whose patterns the order is random at any time; as many as are
    usual for the cubes when None.
    """

    folder: Place
    split: str
    num_neighbours: int | None = None
    num_coordinates: int | None = None
    num_decoders: int = 1
    memory_gib: float = 0.0
    window: int | None = None

    def open(self, key: str, shape: Sequence[int]) -> StoredSamples:
        """Open them. Raises WorkspaceError if a part is missing or damaged."""
        return StoredSamples(self, key, shape)


@dataclass(frozen=True)
class _Use:
    """The rows of a batch, the row groups that they are in, and those that no later batch of the epoch needs."""

    epoch: int
    indices: Rows
    groups: list[int]
    last: list[int]


class _Held:
    """Row groups of a stream that are there or on their way, by epoch and number; awaited: batches that wait for each.

    They are at most so many, beside those that are awaited: where a batch takes from anywhere, as pairs do, some are
    read again.
    """

    def __init__(self, most: int) -> None:
        self.cells: dict[tuple[int, int], Future[pa.ChunkedArray]] = {}
        self.awaited: Counter[tuple[int, int]] = Counter()
        self._most = most

    def release(self, use: _Use) -> None:
        """Once a batch is decoded: forget what no later one of its epoch needs, and the oldest beyond the most."""
        for group in use.groups:
            key = use.epoch, group
            self.awaited[key] -= 1
            self.cells[key] = self.cells.pop(key)  # the newest now
        for group in use.last:
            del self.cells[use.epoch, group], self.awaited[use.epoch, group]
        surplus = len(self.cells) - self._most
        if surplus > 0:
            for key in [key for key in self.cells if not self.awaited[key]][:surplus]:
                del self.cells[key]


class StoredSamples(Samples):
    """Samples whose cells are read from the store's files before a batch needs them."""

    def __init__(self, patterns: StoredPatterns, key: str, shape: Sequence[int]) -> None:
        where = predicate(patterns.split, patterns.num_neighbours, patterns.num_coordinates)
        names = [name for name in TRAINING_COLUMNS if name != "cube"]
        table = locate_cells(patterns.folder, where, names)
        self._folder = patterns.folder
        self._groups = table["part"].to_numpy().astype(np.int64) * GROUPS_PER_PART + table["group"].to_numpy()
        self._rows = table["row"].to_numpy()
        self._window = patterns.window or usual_window(shape)
        self._read, self.num_decoders = cell_reader(patterns.folder), patterns.num_decoders
        self._number(table.select(names), key, shape)
        first = np.unique(self._groups, return_index=True)[1]
        self.num_bytes = int(table["group_bytes"].to_numpy()[first].sum())
        self.is_kept = self.num_bytes <= patterns.memory_gib * GIB
        self._kept: dict[int, Future[pa.ChunkedArray]] = {}

    @property
    def layout(self) -> Layout:
        return Layout(self._groups[self._where], self._window)

    def stream(self, epochs: Iterable[Sequence[Rows]]) -> Stream:
        """As of all samples; row groups are read ahead, once an epoch each.

        Raises WorkspaceError if a part was damaged or lost since the samples were opened.
        """
        num_readers = FETCHED_PARTS if isinstance(self._folder, RemotePath) else self.num_decoders
        uses = itertools.chain.from_iterable(self._uses(epoch, batches) for epoch, batches in enumerate(epochs))
        held = _Held(self._window + 3 * NUM_STREAMS)
        readers, decoders = ThreadPoolExecutor(num_readers, "read"), ThreadPoolExecutor(self.num_decoders, "decode")
        with readers, decoders:
            try:
                for use in _ahead(uses, partial(self._request, held, readers)):
                    where = self._where[use.indices]
                    places = zip(self._groups[where].tolist(), self._rows[where].tolist(), strict=True)
                    found = [held.cells[use.epoch, group].result()[row].as_buffer() for group, row in places]
                    yield self._decoded(use.indices, [memoryview(cell) for cell in found], decoders)
                    held.release(use)
            finally:
                readers.shutdown(cancel_futures=True)

    def _uses(self, epoch: int, batches: Sequence[Rows]) -> Iterator[_Use]:
        """The batches of an epoch with the row groups that they need."""
        needed = [np.unique(self._groups[self._where[indices]]).tolist() for indices in batches]
        last = {group: number for number, groups in enumerate(needed) for group in groups}
        for number, (indices, groups) in enumerate(zip(batches, needed, strict=True)):
            yield _Use(epoch, indices, groups, [group for group in groups if last[group] == number])

    def _request(self, held: _Held, readers: Executor, use: _Use) -> None:
        """Have the row groups of a batch read that are not there and not on their way."""
        for group in use.groups:
            held.awaited[use.epoch, group] += 1
            if (use.epoch, group) not in held.cells:
                read = self._kept.get(group)
                if read is None or (read.done() and (read.cancelled() or read.exception())):
                    read = readers.submit(self._group, group)
                held.cells[use.epoch, group] = read
                if self.is_kept:
                    self._kept[group] = read

    def _group(self, group: int) -> pa.ChunkedArray:
        part, number = divmod(group, GROUPS_PER_PART)
        try:
            return self._read(part, number)
        except (ValueError, OSError) as error:
            raise damaged(part_path(self._folder, part), error) from None


def _ahead(uses: Iterator[_Use], request: Callable[[_Use], None]) -> Iterator[_Use]:
    """The same, each when those that follow it soon have been requested as well."""
    waiting: deque[_Use] = deque()
    for use in uses:
        request(use)
        waiting.append(use)
        if len(waiting) > BATCHES_AHEAD:
            yield waiting.popleft()
    yield from waiting
