"""Duplicates: the same scan more than once, re-encoded, resampled, noisy, cropped or under another name.

Scans that are near each other by their embeddings may be copies; their coarse voxels show whether they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from raygenesis.discovery.exact import Neighbours

NUM_CANDIDATES = 16  # nearest scans of a scan that may be copies of it
# Likeness of copies, on a grid that costs little and on one that tells them from two visits of one person. Measured on
# real heads and hippocampi: of copies at least 0.990 and 0.989, of two people, or of a simulated visit that turned the
# head by 3 degrees, at most 0.95 and 0.91, and at 1 degree 0.977 to 0.986 on the latter.
ROUGH_GRID, FINE_GRID = 24, 48
ROUGH_LIKENESS, COPY_LIKENESS = 0.97, 0.985


def candidates(found: Neighbours) -> NDArray[np.int64]:
    """Pairs [p, 2] of numbers of scans that may be copies, the lower first, each pair once, in order.

    found: rows padded by infinity.
    """
    numbers, is_there = found.numbers[:, :NUM_CANDIDATES], np.isfinite(found.distances[:, :NUM_CANDIDATES])
    own = np.broadcast_to(np.arange(len(numbers))[:, None], numbers.shape)
    pairs = np.sort(np.stack([own[is_there], numbers[is_there]], 1), axis=1)
    return np.unique(pairs, axis=0) if len(pairs) else pairs


def first_copies(pairs: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Of each of so many scans the first that is the same scan, which may be itself; pairs: of copies, [p, 2]."""
    links = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (number, number))
    pieces = connected_components(links, directed=False)[1]
    _, first, back = np.unique(pieces, return_index=True, return_inverse=True)
    return first[back]
