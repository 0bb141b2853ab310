"""Arrays of the archive, read by tensorstore from a disk or an object store, many opened and read at once.

Whatever is wrong with an array is a ScanError in words, and what a store fails in a WorkspaceError.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from raygenesis.errors import ScanError
from raygenesis.workspace.conditional import ERRORS, location, store_resources
from raygenesis.workspace.faults import is_passing, patiently
from raygenesis.workspace.files import Place
from raygenesis.workspace.hardware import num_cores
from raygenesis.workspace.object_store import RemotePath, StoreSettings, store_settings

# Unpacked chunks that a process keeps for the next region: those that crops share. Ray runs a process a core.
CACHE_BYTES = 32 * 2**20

# Requests under way at once; they wait for a disk or a store, not for a core.
FILES_AT_ONCE, OBJECTS_AT_ONCE = 2, 16

# How every chunk is packed. An array of another kind is refused: nothing might tell that a chunk of it is damaged.
CHECKED = {"codecs": [{"name": "sharding_indexed", "configuration": {"codecs": ["bytes", "blosc", "crc32c"]}}]}

# What tensorstore says of a shard, and what is the matter with it; the first that fits.
FAULTS = {
    "is missing": "{shard} is missing, or a chunk of it",
    "equested byte range|shard has size": "{shard} is cut short",
    "Digest mismatch": "a checksum in {shard} does not agree",
    "[Bb]losc": "a chunk in {shard} cannot be unpacked",
}


@dataclass(frozen=True)
class Array:
    """An array in a folder of a disk or an object store, open to be read."""

    folder: Place
    store: ts.TensorStore

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.store.shape)

    @property
    def ndim(self) -> int:
        return self.store.rank

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.store.dtype.numpy_dtype

    def begin_reading(self, regions: Sequence[Sequence[slice] | None]) -> Callable[[], list[NDArray[Any]]]:
        """Begin to read regions (slices without steps), all of the array where None; the result waits for them.

        Regions may overlap: what they share is read and unpacked once. The result raises ScanError if a shard is
        missing, cut short, or not what its checksums say, WorkspaceError if a store fails, or a disk for longer than is
        waited for.
        """
        boxes = [
            tuple(
                slice(first, max(first, last))
                for first, last in (part.indices(side)[:2] for part, side in zip(region, self.shape, strict=True))
            )
            for region in (region or [slice(None)] * self.ndim for region in regions)
        ]
        begun = [self._reads(boxes)]
        return functools.partial(
            patiently, lambda: self._wait(begun.pop() if begun else self._reads(boxes)), self.folder
        )

    def _reads(self, boxes: Sequence[tuple[slice, ...]]) -> list[ts.Future[NDArray[Any]]]:
        with ts.Batch() as batch:  # chunks that lie side by side in a shard come in one request
            return [self.store[box].read(batch=batch) for box in boxes]

    def read(self, region: Sequence[slice] | None = None) -> NDArray[Any]:
        """The voxels of one region, as in `begin_reading`."""
        return self.begin_reading([region])()[0]

    def _wait(self, reads: Sequence[ts.Future[NDArray[Any]]]) -> list[NDArray[Any]]:
        try:
            return [read.result() for read in reads]
        except ERRORS as error:
            _raise_fault(self.folder, error)
            shard = re.search(r'/?(c(\.\d+)+)"', str(error))
            name = f"shard {shard[1]}" if shard else "a shard"
            found = (words for said, words in FAULTS.items() if re.search(said, str(error)))
            reason = next(found, "{shard} cannot be read").format(shard=name)
        raise ScanError(reason)


def begin_opening(folder: Place) -> Callable[[], Array]:
    """Begin to open an array; the result waits for it.

    The result raises ScanError if it is not there, is damaged, or has no checksums, WorkspaceError if a store fails.
    """
    if isinstance(folder, RemotePath):
        folder.require_bucket()  # tensorstore takes a bucket that is not there for an empty one
    spec = {
        "driver": "zarr3",
        "kvstore": location(folder),
        "metadata": CHECKED,
        "fill_missing_data_reads": False,  # a lost shard would be read as zeros
        # What the cache has is looked up anew for each opening, and not for each of its chunks.
        "recheck_cached_metadata": "open",
        "recheck_cached_data": "open",
    }

    def begin() -> ts.Future[ts.TensorStore]:
        return ts.open(spec, read=True, open=True, context=_context(_settings_for(folder), _num_threads()))

    begun = [begin()]
    return functools.partial(patiently, lambda: _opened(folder, begun.pop() if begun else begin()), folder)


def open_array(folder: Place) -> Array:
    """An array to read. Raises as `begin_opening` says."""
    return begin_opening(folder)()


def _opened(folder: Place, opening: ts.Future[ts.TensorStore]) -> Array:
    try:
        array = Array(folder, opening.result())
        if array.dtype.kind in "iuf" and min(array.shape, default=0) > 0:
            return array
        reason = "its zarr.json describes another kind of array"
    except ERRORS as error:
        _raise_fault(folder, error)
        message = str(error)
        reason = "its zarr.json is damaged, or describes another kind of array"
        if message.startswith("NOT_FOUND"):
            reason = "its zarr.json is missing"
    raise ScanError(reason)


def _raise_fault(folder: Place, error: Exception) -> None:
    """Raise WorkspaceError where it is the store that failed, and not the array, and OSError where a disk may pass."""
    fault = folder.fault_of(error) if isinstance(folder, RemotePath) else None
    if fault is not None:
        raise fault from None
    if is_passing(as_os_error(error)):
        raise as_os_error(error) from None


def as_os_error(error: Exception) -> OSError:
    """An error of tensorstore as Python has it: with the system's number, where it has one, else with all its words."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def _settings_for(folder: Place) -> StoreSettings | int:
    """What a context is made for: a store, or this process's files."""
    return os.getpid() if isinstance(folder, Path) else store_settings(folder.scheme)


# Made when a process first reads, and for that process alone: its threads and connections do not outlive a fork.
@functools.cache
def _context(made_for: StoreSettings | int, num_threads: int) -> ts.Context:
    resources: dict[str, Any] = {
        "cache_pool": {"total_bytes_limit": CACHE_BYTES},
        "data_copy_concurrency": {"limit": num_threads},
        "file_io_concurrency": {"limit": FILES_AT_ONCE * num_threads},
    }
    if isinstance(made_for, StoreSettings):
        kind = "gcs" if made_for.scheme == "gs" else "s3"
        resources |= {f"{kind}_request_concurrency": {"limit": OBJECTS_AT_ONCE}, **store_resources(made_for)}
    return ts.Context(resources)


def _num_threads() -> int:
    """As many as the process may use, or as OMP_NUM_THREADS says: one in Ray's workers, each of which has a core."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    return num_cores()
