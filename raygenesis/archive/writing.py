"""Arrays of the archive: made by zarr-python, and filled by tensorstore, which packs a shard in half of the time."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from raygenesis.archive.reading import as_os_error

# Shards lie side by side in an array's folder: for a million small volumes folders are what costs.
SEPARATOR = "."


def write_array(
    folder: Path, voxels: NDArray[Any], chunks: Sequence[int], shards: Sequence[int], axes: Sequence[str]
) -> None:
    """Write an array that `open_array` reads; `shards` are multiples of `chunks`, an axis each. Raises OSError."""
    size = voxels.dtype.itemsize
    packing = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle" if size > 1 else "noshuffle", typesize=size)
    zarr.create_array(
        folder,
        shape=voxels.shape,
        dtype=voxels.dtype.newbyteorder("="),
        chunks=tuple(chunks),
        shards=tuple(shards),
        compressors=[packing, Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": SEPARATOR},
        dimension_names=axes,
        zarr_format=3,
    )
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "store_data_equal_to_fill_value": True,  # a chunk that is not there is lost, and not empty
    }
    try:
        store = ts.open(spec, open=True, context=_context(os.getpid())).result()
        for place in np.ndindex(*(-(-side // shard) for side, shard in zip(voxels.shape, shards, strict=True))):
            # One shard at a time: what is written of it is held in memory until it is whole.
            box = tuple(
                slice(n * shard, min((n + 1) * shard, side))
                for n, shard, side in zip(place, shards, voxels.shape, strict=True)
            )
            store[box].write(voxels[box]).result()
    except (ValueError, RuntimeError) as error:
        raise as_os_error(error) from None


@functools.cache
def _context(process: int) -> ts.Context:
    """Of one process alone: its threads do not outlive a fork. What is written is not read again."""
    one = {"limit": 1}
    return ts.Context(
        {"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": one, "file_io_concurrency": one,
         "file_io_sync": False}
    )  # fmt: skip
