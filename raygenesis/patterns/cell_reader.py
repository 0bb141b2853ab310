"""The cells of a pattern store where they lie, for what is too large to be held in memory."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygenesis.patterns.reader import damaged, part_paths, row_groups
from raygenesis.patterns.writer import part_path
from raygenesis.workspace.files import Place, parquet_file
from raygenesis.workspace.object_store import RemotePath

OPEN_PARTS, FOOTERS = 32, 1024  # of each thread, and of each process, that are kept

FETCHED_PARTS = 16  # of a remote store at a time

CellReader = Callable[[int, int], pa.ChunkedArray]


def locate_cells(folder: Place, where: pc.Expression, names: Sequence[str]) -> pa.Table:
    """The selected rows of a store and where their cells are.

    where: a predicate (`reader.predicate`); names: columns to read. Returns these columns, and `part`, `group`, `row`
    and `group_bytes` (int32): the part's number, the row group in it, the row in that, and the row group's bytes, all
    columns, unpacked. Raises WorkspaceError if a part is damaged.
    """
    paths = part_paths(folder)
    with ThreadPoolExecutor(FETCHED_PARTS if isinstance(folder, RemotePath) else 1) as pool:
        found = pool.map(lambda part: _locate(paths[part], part, where, names), range(len(paths)))
        return pa.concat_tables(found)


def _locate(path: Place, part: int, where: pc.Expression, names: Sequence[str]) -> pa.Table:
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
        "group_bytes": np.repeat(np.array([group.total_byte_size for group in groups], np.int32), sizes),
    }
    for name, column in numbers.items():
        table = table.append_column(name, pa.array(column))
    return table.filter(where).select([*names, *numbers])


def cell_reader(folder: Place) -> CellReader:
    """A function of part and row group that returns the group's cells (binary), for any number of threads.

    Each thread keeps OPEN_PARTS files open; footers are read once.
    """
    opened = threading.local()

    @functools.lru_cache(FOOTERS)
    def footer(part: int) -> pq.FileMetaData:
        return parquet_file(part_path(folder, part)).metadata

    def parts_of_thread() -> Callable[[int], pq.ParquetFile]:
        # A process that was forked from one that had opened a part opens it anew.
        if getattr(opened, "process", None) != os.getpid():
            opened.process = os.getpid()
            opened.part = functools.lru_cache(OPEN_PARTS)(
                lambda part: parquet_file(part_path(folder, part), metadata=footer(part))
            )
        parts: Callable[[int], pq.ParquetFile] = opened.part
        return parts

    def read(part: int, group: int) -> pa.ChunkedArray:
        return parts_of_thread()(part).read_row_group(group, columns=["cube"], use_threads=False)["cube"]

    return read
