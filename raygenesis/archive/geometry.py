"""Resampling a box of a volume to a fixed number of voxels.

Positions are in mm from the corner of the voxel array along its own axes (z y x, or y x): voxel i of an axis
spans [i, i + 1) × spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def axis_weights(num_in: int, num_out: int, origin: float, extent: float) -> tuple[slice, NDArray[np.float32]]:
    """Linear resampling along one axis: the input slice that is needed, and weights float32 [num_out, slice].

    `origin` and `extent` are in input voxels from the array's corner. Output voxels wider than input voxels average
    over their width (triangular kernel), so that nothing aliases; narrower ones interpolate linearly. Positions
    beyond the outermost voxel centres count as on them.
    """
    step = extent / num_out
    centres = np.clip(origin + (np.arange(num_out) + 0.5) * step - 0.5, 0, num_in - 1)
    width = max(step, 1.0)
    first = max(math.floor(centres[0] - width), 0)
    last = min(math.ceil(centres[-1] + width), num_in - 1)
    grid = np.arange(first, last + 1)
    weights = np.maximum(0.0, 1.0 - np.abs(grid - centres[:, None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    return slice(first, last + 1), weights.astype(np.float32)


def resample(voxels: NDArray[np.float32], weights: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Apply one weight matrix per axis: [z, y, x] → [num_out of each]; the shortest intermediate results first."""
    order = sorted(range(voxels.ndim), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1])
    for axis in order:
        voxels = np.moveaxis(np.moveaxis(voxels, axis, -1) @ weights[axis].T, -1, axis)
    return np.ascontiguousarray(voxels)


def best_level(
    levels: Sequence[Sequence[int]], spacing_mm: Sequence[float], step_mm: Sequence[float] | NDArray[np.float64]
) -> int:
    """The coarsest pyramid level whose voxels are no larger than the output's `step_mm` on any axis (else level 0)."""
    fitting = [
        number
        for number, factors in enumerate(levels)
        if all(n * fine <= step * 1.001 for n, fine, step in zip(factors, spacing_mm, step_mm, strict=True))
    ]
    return max(fitting, default=0)
