"""Outliers: scans with nothing like them near, which are likely no scans, or files gone wrong.

Scans around which others are sparse may be some; they are where they are less than half as alike to what is near them,
by their coarse voxels, as scans of the archive usually are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raygenesis.discovery.exact import Neighbours

RANK = 10  # of the neighbour whose distance says how densely scans lie around a scan
SPARSE = 1.25
NUM_COMPARED = 3  # nearest scans of a scan that it is compared with
NUM_USUAL = 48  # scans that are not sparse, by which likeness is judged
LEAST_SHARE = 0.5  # of the usual likeness
LEAST_USUAL = 0.2  # where scans are hardly alike at all, likeness tells nothing


def radii(found: Neighbours) -> NDArray[np.float64]:
    """The distance of each scan's neighbour RANK, or of its last where it has fewer; infinite where it has none.

    found: rows padded by infinity.
    """
    distances = found.distances[:, :RANK].astype(np.float64)
    last = np.isfinite(distances).sum(1) - 1
    return np.where(last < 0, np.inf, distances[np.arange(len(distances)), np.maximum(last, 0)])


def sparsity(found: Neighbours, radius: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much sparser scans lie around each scan than around its neighbours: about 1 within a group, more beside it.

    A scan's radius by the median of those of its first RANK neighbours: a simplified local outlier factor (Breunig et
    al. 2000), which asks nothing of how densely a group lies. 1 where all lie at one place, or there are none.
    """
    numbers, is_there = found.numbers[:, :RANK], np.isfinite(found.distances[:, :RANK])
    out = np.ones(len(radius))
    some = np.flatnonzero(is_there.any(1))
    usual = np.nanmedian(np.where(is_there[some], radius[numbers[some]], np.nan), axis=1)
    out[some] = np.where(usual > 0, radius[some] / np.where(usual > 0, usual, 1), 1 + (radius[some] > 0))
    return out


def outliers(sparse: NDArray[np.int64], likeness: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.int64]:
    """Those of the sparse scans that are outliers.

    sparse: their numbers [s]; likeness: to their nearest, [s, NUM_COMPARED], NaN where it is unknown; usual: the same
    of other scans, [u, NUM_COMPARED].
    """
    typical = float(np.median(_typical(usual))) if len(usual) else 0.0
    if typical < LEAST_USUAL:
        return sparse[:0]
    return sparse[_typical(likeness) < LEAST_SHARE * typical]


def _typical(likeness: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each row, 1 where nothing is known."""
    filled = np.where(np.isnan(likeness).all(1, keepdims=True), 1.0, likeness)
    typical: NDArray[np.float64] = np.nanmedian(filled, axis=1)
    return typical
