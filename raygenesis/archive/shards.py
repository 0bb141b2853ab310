"""The one kind of Zarr 3 array that the archive holds: chunks of blosc (lz4, byte shuffle), each with a checksum, in
shards. Written whole, read by region.

zarr-python and tensorstore read the same files; here, where the data path is all that counts, the same bytes go
straight between disk, blosc and array, which is two to three times faster.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numcodecs import blosc
from numpy.typing import NDArray

from raygenesis.errors import ScanError
from raygenesis.workspace.files import Place
from raygenesis.workspace.hardware import num_cores

# Each thread packs and unpacks for itself: Ray gives a worker one core.
blosc.use_threads = False

CHECKSUM_BYTES = 4
ENTRY = np.dtype("<u8")  # of a shard's index: where a chunk begins, and how long it is
ABSENT = np.iinfo(ENTRY).max

# Shards lie side by side in an array's folder: for a million small volumes folders are what costs.
SEPARATOR = "."

# What is fetched of a remote shard at once.
WINDOW_BYTES = 4 * 2**20

# Fewer chunks than this are not worth a thread.
MIN_CHUNKS = 8

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def write_array(
    folder: Path, voxels: NDArray[Any], chunks: Sequence[int], shards: Sequence[int], axes: Sequence[str]
) -> None:
    """Write an array; `shards` are multiples of `chunks`, one of each per axis. Raises OSError."""
    folder.mkdir(parents=True)
    for place in np.ndindex(*(-(-side // shard) for side, shard in zip(voxels.shape, shards, strict=True))):
        start = [number * shard for number, shard in zip(place, shards, strict=True)]
        part = voxels[tuple(slice(first, first + shard) for first, shard in zip(start, shards, strict=True))]
        with (folder / _key(place)).open("wb") as file:
            _write_shard(file, part, chunks, shards)
    (folder / "zarr.json").write_text(json.dumps(_metadata(voxels, chunks, shards, axes)))


def _key(place: Sequence[int]) -> str:
    """The name of a shard's file."""
    return SEPARATOR.join(["c", *map(str, place)])


def _write_shard(file: Any, voxels: NDArray[Any], chunks: Sequence[int], shards: Sequence[int]) -> None:
    index = np.full((*(shard // chunk for shard, chunk in zip(shards, chunks, strict=True)), 2), ABSENT, ENTRY)
    little = voxels.dtype.newbyteorder("<")
    place = 0
    for number in np.ndindex(*(-(-side // chunk) for side, chunk in zip(voxels.shape, chunks, strict=True))):
        box = tuple(slice(n * chunk, (n + 1) * chunk) for n, chunk in zip(number, chunks, strict=True))
        part = voxels[box]
        if part.shape != tuple(chunks):
            padded = np.zeros(chunks, voxels.dtype)
            padded[tuple(slice(0, side) for side in part.shape)] = part
            part = padded
        shuffle = blosc.SHUFFLE if little.itemsize > 1 else blosc.NOSHUFFLE
        cell = blosc.compress(np.ascontiguousarray(part, little), b"lz4", 5, shuffle)
        file.write(cell)
        file.write(crc32c(cell).to_bytes(CHECKSUM_BYTES, "little"))
        index[number] = place, len(cell) + CHECKSUM_BYTES
        place += len(cell) + CHECKSUM_BYTES
    file.write(index.tobytes())
    file.write(crc32c(index.tobytes()).to_bytes(CHECKSUM_BYTES, "little"))


def _metadata(
    voxels: NDArray[Any], chunks: Sequence[int], shards: Sequence[int], axes: Sequence[str]
) -> dict[str, Any]:
    shuffle = "shuffle" if voxels.dtype.itemsize > 1 else "noshuffle"
    packing = {"cname": "lz4", "clevel": 5, "shuffle": shuffle, "typesize": voxels.dtype.itemsize, "blocksize": 0}
    sharding = {
        "chunk_shape": list(chunks),
        "codecs": [LITTLE, {"name": "blosc", "configuration": packing}, {"name": "crc32c"}],
        "index_codecs": [LITTLE, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(voxels.shape),
        "data_type": voxels.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shards)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": SEPARATOR}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": list(axes),
        "attributes": {},
    }


@dataclass(frozen=True)
class Array:
    """An array that `write_array` wrote, in a folder of a disk or an object store."""

    folder: Place
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def read(self, region: Sequence[slice] | None = None) -> NDArray[Any]:
        """The voxels of a region (slices without steps), all of them when None.

        Raises ScanError if a shard is missing, cut short, or not what its checksums say.
        """
        return self.read_many([region])[0]

    def read_many(self, regions: Sequence[Sequence[slice] | None]) -> list[NDArray[Any]]:
        """The voxels of several regions, which may overlap: each chunk is read and unpacked once."""
        boxes = [
            [part.indices(side)[:2] for part, side in zip(region or [slice(None)] * self.ndim, self.shape, strict=True)]
            for region in regions
        ]
        out = _together([[max(0, last - first) for first, last in box] for box in boxes], self.dtype)
        wanted: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for number, box in enumerate(boxes):
            for shard, chunk in self._touched(box) if out[number].size else ():
                wanted.setdefault(shard, {}).setdefault(chunk, []).append(number)

        def fill(shard: tuple[int, ...], places: Sequence[tuple[int, ...]]) -> None:
            for place, chunk in self._unpack(shard, places):
                origin = [
                    n * side + m * length
                    for n, side, m, length in zip(shard, self.shards, place, self.chunks, strict=True)
                ]
                for number in wanted[shard][place]:
                    _copy(chunk, origin, out[number], boxes[number])

        num_threads = _num_threads() if isinstance(self.folder, Path) else 1
        for shard, chunks in wanted.items():
            places, num_parts = list(chunks), min(num_threads, len(chunks) // MIN_CHUNKS)
            if num_parts <= 1:
                fill(shard, places)
            else:
                parts = [places[first::num_parts] for first in range(num_parts)]
                list(_pool(num_threads).map(functools.partial(fill, shard), parts))
        return out

    def _touched(self, box: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Shards that a box touches, and which of their chunks."""
        for shard in _places(box, self.shards):
            within = [
                (max(first - number * side, 0), min(last - number * side, side))
                for (first, last), number, side in zip(box, shard, self.shards, strict=True)
            ]
            yield from ((shard, chunk) for chunk in _places(within, self.chunks))

    def _unpack(
        self, shard: tuple[int, ...], numbers: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
        """Chunks of a shard, one after another in the same memory."""
        grid = tuple(side // chunk for side, chunk in zip(self.shards, self.chunks, strict=True))
        num_index_bytes = int(np.prod(grid)) * 2 * ENTRY.itemsize + CHECKSUM_BYTES
        name = f"shard {_key(shard)}"
        with _opened(self.folder / _key(shard), name) as (size, read):
            if size < num_index_bytes:
                raise ScanError(f"{name} is cut short")
            packed = _read_checked(read, size - num_index_bytes, num_index_bytes, name)
            index = np.frombuffer(packed, ENTRY).reshape(*grid, 2)
            chunk = np.empty(self.chunks, self.dtype)
            for number in numbers:
                place, length = (int(value) for value in index[number])
                if place + length > size - num_index_bytes:
                    raise ScanError(f"{name} is cut short")
                _unpack_into(_read_checked(read, place, length, name), chunk, name)
                yield number, chunk


def open_array(folder: Place) -> Array:
    """An array's shape and type. Raises ScanError if it is not there, or not one that `write_array` wrote."""
    try:
        with (folder / "zarr.json").open("rb") as file:  # which nothing replaces, as `read_bytes` allows for
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise ScanError("its zarr.json is missing") from None
    try:
        tree = json.loads(text)
        (sharding,) = tree["codecs"]
        inner = sharding["configuration"]
        array = Array(
            folder, tuple(tree["shape"]), np.dtype(tree["data_type"]), tuple(inner["chunk_shape"]),
            tuple(tree["chunk_grid"]["configuration"]["chunk_shape"]),
        )  # fmt: skip
        names = [codec["name"] for codec in inner["codecs"]]
        encoding = tree["chunk_key_encoding"]
        is_ours = encoding == {"name": "default", "configuration": {"separator": SEPARATOR}}
        is_ours &= names == ["bytes", "blosc", "crc32c"] and inner.get("index_location", "end") == "end"
        sides = [*array.shape, *array.chunks, *array.shards]
        is_sound = len(sides) == 3 * array.ndim and all(isinstance(side, int) and side > 0 for side in sides)
        divides = all(shard % chunk == 0 for shard, chunk in zip(array.shards, array.chunks, strict=True))
        if is_ours and is_sound and divides and array.dtype.kind in "iuf":
            return array
        reason = "its zarr.json describes another kind of array"
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "its zarr.json is damaged"
    raise ScanError(reason)


def _together(shapes: Sequence[Sequence[int]], dtype: np.dtype[Any]) -> list[NDArray[Any]]:
    """Empty arrays in one piece of memory: in large pieces the system maps large pages, which is half of the time."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    ends = list(itertools.accumulate(sizes))
    whole = np.empty(sum(sizes), dtype)
    return [whole[end - size : end].reshape(shape) for shape, size, end in zip(shapes, sizes, ends, strict=True)]


def _copy(chunk: NDArray[Any], origin: Sequence[int], out: NDArray[Any], box: Sequence[tuple[int, int]]) -> None:
    """What a chunk that begins at `origin` has of a box, into the array of the box."""
    source, target = [], []
    for begin, side, (first, last) in zip(origin, chunk.shape, box, strict=True):
        low, high = max(first, begin), min(last, begin + side)
        source.append(slice(low - begin, high - begin))
        target.append(slice(low - first, high - first))
    out[tuple(target)] = chunk[tuple(source)]


def _num_threads() -> int:
    """As many as the process may use, or as OMP_NUM_THREADS says: one in Ray's workers, each of which has a core."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    return num_cores()


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, "shards")


def _places(box: Sequence[tuple[int, int]], sides: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Numbers of the cells of a grid that a box touches."""
    spans = [range(first // side, -(-last // side)) for (first, last), side in zip(box, sides, strict=True)]
    return itertools.product(*spans)


@contextmanager
def _opened(path: Place, name: str) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
    """Size of a file, and a function that reads bytes of it from a place on."""
    try:
        if isinstance(path, Path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                yield os.fstat(descriptor).st_size, lambda place, length: os.pread(descriptor, length, place)
            finally:
                os.close(descriptor)
        else:
            with path.open("rb") as file:
                yield file.size(), functools.partial(_through_windows, file, {})
    except FileNotFoundError:
        raise ScanError(f"{name} is missing") from None
    except OSError as error:
        raise ScanError(f"{name} cannot be read ({error.strerror or type(error).__name__})") from None


def _through_windows(file: Any, windows: dict[int, bytes], place: int, length: int) -> bytes:
    """Bytes of a remote file; whole windows of it are fetched, since a request costs more than a megabyte."""
    found = b""
    for number in range(place // WINDOW_BYTES, (place + length - 1) // WINDOW_BYTES + 1):
        if number not in windows:
            windows[number] = file.read_at(WINDOW_BYTES, number * WINDOW_BYTES)
        found += windows[number]
    begin = place - place // WINDOW_BYTES * WINDOW_BYTES
    return found[begin : begin + length]


def _read_checked(read: Callable[[int, int], bytes], place: int, length: int, name: str) -> bytes:
    """Bytes from a place on, without the checksum at their end."""
    content = read(place, length - CHECKSUM_BYTES)
    checksum = read(place + length - CHECKSUM_BYTES, CHECKSUM_BYTES)
    if crc32c(content) != int.from_bytes(checksum, "little"):
        raise ScanError(f"a checksum in {name} does not agree")
    return content


def _unpack_into(cell: bytes, chunk: NDArray[Any], name: str) -> None:
    try:
        num_bytes, num_packed, _ = blosc._cbuffer_sizes(cell)
        if num_bytes != chunk.nbytes or num_packed != len(cell):
            raise ScanError(f"a chunk in {name} holds another number of bytes")
        blosc.decompress(cell, chunk)
    except (ValueError, RuntimeError):
        raise ScanError(f"a chunk in {name} cannot be unpacked") from None
