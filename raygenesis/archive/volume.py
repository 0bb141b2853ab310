"""A scan in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Volume:
    """Voxels as the scanner stored them, and where they lie.

    voxels: [z, y, x] (2D: [y, x]), any integer type or float32; the indices rise towards superior, anterior and
        right (canonical RAS+ axes, slowest first).
    affine: float64 [4, 4], from voxel index (x, y, z) to RAS+ mm, as NIfTI has it.
    slope, intercept: real value = voxel × slope + intercept (Hounsfield units for CT).
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between voxel centres along each axis of `voxels` (z y x, or y x), in mm."""
        xyz = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(step) for step in xyz[: self.voxels.ndim][::-1])
