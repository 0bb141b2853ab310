"""From encoded cubes to batches: decoded a few ahead, by several threads, and scaled where they are learnt from."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raygenesis.patterns.cells import DTYPE, STEPS, decode_steps
from raygenesis.training.devices import send
from raygenesis.training.order import Layout, Rows

PREFETCHED_BATCHES = 2
LEAST_DECODED = 8  # cubes by a thread at a time


@dataclass(frozen=True)
class Batch:
    """Samples that are trained on together.

    cubes: float32 [n, 1, z, y, x] (2D: [n, 1, y, x]) in [0, 1]; columns: the table's other columns, one entry a cube.
    """

    cubes: torch.Tensor
    columns: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StoredBatch:
    """A batch as it is stored.

    steps: int16 [n, 1, z, y, x] (2D: [n, 1, y, x]), in steps of 1/STEPS of the cubes. sent: of steps that are on their
    way to a GPU, when they are there.
    """

    steps: torch.Tensor
    columns: dict[str, NDArray[Any]]
    sent: torch.cuda.Event | None = None

    def on(self, device: torch.device | str) -> Batch:
        """The batch on a device, to which half as many bytes are sent as its cubes have."""
        if self.sent is not None:
            stream = torch.cuda.current_stream(self.steps.device)
            stream.wait_event(self.sent)
            self.steps.record_stream(stream)  # or its memory might be taken before this stream has read it
        return Batch(self.steps.to(device).float().mul_(1.0 / STEPS), self.columns)

    def send(self, stream: torch.cuda.Stream) -> StoredBatch:
        """The batch on a GPU, or on its way there by a stream of its own: the GPU computes meanwhile."""
        with torch.cuda.stream(stream):
            return StoredBatch(send(self.steps, stream.device), self.columns, stream.record_event())


Stream = Generator[StoredBatch, None, None]


class Samples:
    """Random access to the rows of Arrow tables that hold a `cube` cell.

    The tables stay where they are (in Ray's shared memory, when they come from there): workers of one node share
    one encoded copy, and only the cubes of a batch are decoded. Rows are numbered by their `key`, so that
    the order in which tables arrive does not matter.

    num_decoders: threads that decode them.
    """

    num_decoders = 1

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

    @property
    def layout(self) -> Layout | None:
        """Where the rows lie, by which they are read; None where they are in memory."""
        return None

    def select(self, keep: NDArray[np.bool_]) -> Samples:
        """The rows where `keep`, bool [rows], is true; the cells are shared."""
        selected = copy.copy(self)
        selected._where = self._where[keep]
        selected.columns = {name: column[keep] for name, column in self.columns.items()}
        return selected

    def batch(self, indices: Rows) -> Batch:
        """Decode the rows of these numbers. Raises ValueError if a cell does not hold a cube of the expected shape."""
        (stored,) = self.stream([[indices]])
        return stored.on("cpu")

    def stream(self, epochs: Iterable[Sequence[Rows]]) -> Stream:
        """Batches of the rows of these numbers, an epoch's after the other's.

        Raises ValueError if a cell does not hold a cube of the expected shape.
        """
        with ThreadPoolExecutor(self.num_decoders, "decode") as decoders:
            for batches in epochs:
                for indices in batches:
                    yield self._decoded(indices, [self._cell(int(row)) for row in self._where[indices]], decoders)

    def _decoded(self, indices: Rows, cells: Sequence[memoryview], decoders: Executor) -> StoredBatch:
        """The batch of the rows of these numbers, from their cells."""
        steps = np.empty((len(indices), 1, *self.shape), DTYPE)

        def decode(start: int) -> None:
            for cell, out in zip(cells[start : start + LEAST_DECODED], steps[start:, 0], strict=False):
                decode_steps(cell, out)

        for _ in decoders.map(decode, range(0, len(cells), LEAST_DECODED)):
            pass  # raises what a thread raised
        # At most 4,095: torch computes with signed integers alone.
        return StoredBatch(
            torch.from_numpy(steps.view(np.int16)), {name: column[indices] for name, column in self.columns.items()}
        )

    def _cell(self, row: int) -> memoryview:
        """The encoded cube of a row, numbered as the tables came."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return memoryview(self._cells[chunk][row - int(self._starts[chunk])].as_buffer())


def prefetch(stream: Stream, device: torch.device | str = "cpu") -> Stream:
    """Take batches from a stream in a thread, a few ahead; those for a GPU are sent there."""
    device = torch.device(device)
    ready: queue.Queue[StoredBatch | BaseException | None] = queue.Queue(PREFETCHED_BATCHES)
    stopped = threading.Event()

    def put(item: StoredBatch | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            copies = torch.cuda.Stream(device) if device.type == "cuda" else None
            for batch in stream:
                put(batch if copies is None else batch.send(copies))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)
        finally:
            stream.close()

    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
