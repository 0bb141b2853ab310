"""From tables of encoded cubes to batches, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raygenesis.patterns.cells import DTYPE, STEPS, decode_steps
from raygenesis.settings.streams import EPOCH_ORDER
from raygenesis.training.workers import ALONE, Workers

PREFETCHED_BATCHES = 2


@dataclass(frozen=True)
class Batch:
    """Samples that are trained on together.

    cubes: float32 [n, 1, z, y, x] (2D: [n, 1, y, x]) in [0, 1]; columns: the table's other columns, one entry a cube.
    """

    cubes: torch.Tensor
    columns: dict[str, NDArray[Any]]


class Samples:
    """Random access to the rows of Arrow tables that hold a `cube` cell.

    The tables stay where they are (in Ray's shared memory, when they come from there): workers of one node share
    one encoded copy, and only the cubes of a batch are decoded. Rows are numbered by their `key`, so that
    the order in which tables arrive does not matter.
    """

    def __init__(self, tables: Sequence[pa.Table], key: str, shape: Sequence[int]) -> None:
        tables = [table.combine_chunks() for table in tables if table.num_rows]
        # Of more than 2 GiB there are several chunks.
        self._cells = [chunk for table in tables for chunk in table["cube"].chunks]
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._cells])
        names = [name for name in (tables[0].column_names if tables else []) if name != "cube"]
        self._number(pa.concat_tables([table.select(names) for table in tables]) if tables else None, key, shape)

    def _number(self, table: pa.Table | None, key: str, shape: Sequence[int]) -> None:
        """Number the rows by their key; table: all columns but the cells, None when there are no rows."""
        columns = {} if table is None else {name: table[name] for name in table.column_names}
        keys = np.empty(0, np.int64) if table is None else table[key].to_numpy()
        self.shape = tuple(shape)
        self._where = np.argsort(keys, kind="stable")
        self.columns: dict[str, NDArray[Any]] = {
            name: column.to_numpy(zero_copy_only=False)[self._where] for name, column in columns.items()
        }

    def __len__(self) -> int:
        return len(self._where)

    def select(self, keep: NDArray[np.bool_]) -> Samples:
        """The rows where `keep`, bool [rows], is true; the cells are shared."""
        selected = copy.copy(self)
        selected._where = self._where[keep]
        selected.columns = {name: column[keep] for name, column in self.columns.items()}
        return selected

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Decode the rows of these numbers. Raises ValueError if a cell does not hold a cube of the expected shape."""
        cubes = np.empty((len(indices), 1, *self.shape), np.float32)
        steps = np.empty(self.shape, DTYPE)  # one cube at a time, which stays in the processor's cache
        for cube, row in zip(cubes, self._where[indices], strict=True):
            decode_steps(self._cell(int(row)), steps)
            np.copyto(cube[0], steps)
            cube *= np.float32(1.0 / STEPS)
        return Batch(torch.from_numpy(cubes), {name: column[indices] for name, column in self.columns.items()})

    def _cell(self, row: int) -> memoryview:
        """The encoded cube of a row, numbered as the tables came."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return memoryview(self._cells[chunk][row - int(self._starts[chunk])].as_buffer())


def cubes_of_epoch(num_samples: int, batch_size: int) -> tuple[int, int]:
    """Cubes in a batch of training, and in an epoch, which consists of whole batches, of one at least."""
    batch_size = min(batch_size, num_samples)
    return batch_size, num_samples // batch_size * batch_size


def training_batches(
    num_samples: int, batch_size: int, seed: int, epoch: int, workers: Workers = ALONE, num_pieces: int = 1
) -> list[list[NDArray[np.int64]]]:
    """Rows of one worker's share of each global batch of an epoch, as lists of `num_pieces` arrays of row numbers.

    The epoch's order is one seeded permutation of all samples, and batches are cut into pieces before these are shared,
    whatever the number of workers. The incomplete last batch is left out (other samples fall there each epoch). Fewer
    samples than a batch make one smaller batch.
    """
    order = np.random.Generator(np.random.Philox(EPOCH_ORDER.sequence(seed, epoch))).permutation(num_samples)
    return _shares_of(order[:, np.newaxis], batch_size, workers, num_pieces)


def paired_batches(
    pairs: NDArray[np.int64], batch_size: int, workers: Workers = ALONE, num_pieces: int = 1
) -> list[list[NDArray[np.int64]]]:
    """Rows of one worker's share of each global batch, as `training_batches` returns them, in the order of pairs.

    The rows of a pair, int64 [p, 2], follow each other in one piece of one worker's share. batch_size: samples, an even
    number.
    """
    return _shares_of(pairs, batch_size // 2, workers, num_pieces)


def _shares_of(
    units: NDArray[np.int64], batch_size: int, workers: Workers, num_pieces: int
) -> list[list[NDArray[np.int64]]]:
    """Cut units of rows, int64 [n, rows of a unit], into batches of units, these into pieces, and these into shares."""
    batch_size, num_units = cubes_of_epoch(len(units), batch_size)
    return [
        [np.array_split(piece, workers.world_size)[workers.rank].ravel() for piece in np.array_split(batch, num_pieces)]
        for batch in (units[start : start + batch_size] for start in range(0, num_units, batch_size))
    ]


def ordered_batches(num_samples: int, batch_size: int, workers: Workers = ALONE) -> list[NDArray[np.int64]]:
    """Rows of one worker's share of all samples, in order; each sample comes exactly once over the workers."""
    rows = np.arange(workers.rank, num_samples, workers.world_size)
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def prefetch(samples: Samples, batches: Sequence[NDArray[np.int64]], pin: bool = False) -> Generator[Batch, None, None]:
    """Decode batches in a thread, a few ahead; with `pin` into pinned memory, which a GPU copies while it computes."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCHED_BATCHES)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for indices in batches:
                if stopped.is_set():
                    return
                batch = samples.batch(indices)
                put(Batch(batch.cubes.pin_memory(), batch.columns) if pin else batch)
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
