"""The binary cell of a cube in a table: blosc (lz4, byte shuffle) of 12-bit integers, C order."""

from __future__ import annotations

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

# Values in [0, 1] are kept in 4,095 steps: finer than any scanner's noise, and half of each upper byte is nought.
# Bytes are shuffled and not bits: as small, and unpacked a third faster.
STEPS = 4095
DTYPE = np.dtype("<u2")

# blosc's own header, which says how many bytes the cell and its content have.
HEADER_BYTES = 16


def encode(cube: NDArray[np.float32]) -> bytes:
    """Pack values in [0, 1] of any shape."""
    steps = np.rint(cube * np.float32(STEPS)).astype(DTYPE, order="C")
    return blosc.compress(steps, b"lz4", 5, blosc.SHUFFLE)


def decode_steps(cell: bytes | memoryview, out: NDArray[np.uint16]) -> None:
    """Unpack one cell into `out` (C-contiguous uint16 of the cube's shape), in steps of 1/STEPS.

    Raises ValueError if the cell is cut short or does not hold exactly that many bytes.
    """
    there = memoryview(cell).nbytes
    if there < HEADER_BYTES or blosc._cbuffer_sizes(cell)[1] != there:
        raise ValueError(f"cell of {there} bytes is cut short or damaged")
    num_bytes, _, _ = blosc._cbuffer_sizes(cell)
    if num_bytes != out.nbytes:
        raise ValueError(f"cell holds {num_bytes} bytes, not the {out.nbytes} of shape {out.shape}")
    blosc.decompress(cell, out)


def decode(cell: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Unpack one cell into float32 values in [0, 1]."""
    steps = np.empty(shape, DTYPE)
    decode_steps(cell, steps)
    return steps.astype(np.float32) / np.float32(STEPS)
