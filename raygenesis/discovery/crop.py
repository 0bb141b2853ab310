"""Cropping one pattern from the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.geometry import axis_weights, best_level, resample
from raygenesis.archive.intensity import limits, normalise
from raygenesis.archive.store import read_region, volume_folder
from raygenesis.config import IntensitySettings


def size_mm(row: Mapping[str, Any]) -> NDArray[np.float64]:
    """Physical size of a catalogue row's scan along z y x (2D: y x)."""
    return np.array(row["shape"]) * np.array(row["spacing_mm"])


def place(centre_mm: NDArray[np.float64], extent_mm: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[Any]:
    """Origins of boxes centred at `centre_mm`, moved inside a scan of `size` where they would stick out."""
    return np.clip(centre_mm - extent_mm / 2, 0.0, size - extent_mm)


def crop_cube(
    volumes: Path,
    row: Mapping[str, Any],
    origin_mm: Sequence[float],
    extent_mm: Sequence[float],
    shape: Sequence[int],
    intensity: IntensitySettings,
) -> NDArray[np.float32]:
    """One box of a scan as float32 of `shape` in [0, 1], read from the coarsest level that is fine enough.

    Raises ScanError if a chunk is damaged.
    """
    step = [extent / side for extent, side in zip(extent_mm, shape, strict=True)]
    level = best_level(row["levels"], row["spacing_mm"], step)
    factors = row["levels"][level]
    spacing = [fine * factor for fine, factor in zip(row["spacing_mm"], factors, strict=True)]
    sides = [-(-side // factor) for side, factor in zip(row["shape"], factors, strict=True)]
    region, weights = zip(
        *(
            axis_weights(num_in, num_out, origin / unit, extent / unit)
            for num_in, num_out, origin, extent, unit in zip(sides, shape, origin_mm, extent_mm, spacing, strict=True)
        ),
        strict=True,
    )
    voxels = read_region(volume_folder(volumes, row["volume_id"]), level, region, intensity.channel)
    return resample(normalise(voxels, *limits(row, intensity)), weights)
