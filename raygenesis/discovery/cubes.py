"""Cropping the patterns of one scan: its levels are read once, however many patterns they give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import VolumeRecord
from raygenesis.archive.geometry import axis_weights, best_level, resample
from raygenesis.archive.intensity import limits, normalise
from raygenesis.archive.store import level_shape, read_regions, volume_folder
from raygenesis.settings import IntensitySettings
from raygenesis.workspace.files import Place

# Origin and extent of a box in mm from the scan's corner, z y x (2D: y x).
Box = tuple[Sequence[float] | NDArray[np.float64], Sequence[float] | NDArray[np.float64]]


def size_mm(row: VolumeRecord) -> NDArray[np.float64]:
    """Physical size of a volume along z y x (2D: y x), float64 [ndim]."""
    return np.array(row["shape"]) * np.array(row["spacing_mm"])


def origin_of(
    centre_mm: NDArray[np.float64], extent_mm: NDArray[np.float64], size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Origins of boxes centred at `centre_mm`, moved inside a scan of `size` where they would stick out."""
    return np.clip(centre_mm - extent_mm / 2, 0.0, size - extent_mm)


def crop_cubes(
    volumes: Place, row: VolumeRecord, boxes: Sequence[Box], shape: Sequence[int], intensity: IntensitySettings
) -> list[NDArray[np.float32]]:
    """Boxes of a scan as float32 of `shape` in [0, 1], each read from the coarsest level that is fine enough.

    volumes: the folder of the archive's volumes; row: the scan's catalogue row. Raises ScanError if a chunk is damaged.
    """
    low, high = limits(row, intensity)
    cubes: dict[int, NDArray[np.float32]] = {}
    levels = [best_level(row["levels"], row["spacing_mm"], np.array(extent) / shape) for _, extent in boxes]
    for level in sorted(set(levels)):
        chosen = [number for number, other in enumerate(levels) if other == level]
        regions, weights = zip(*(_region(row, level, boxes[number], shape) for number in chosen), strict=True)
        voxels = read_regions(volume_folder(volumes, row["volume_id"]), level, regions, intensity.channel)
        for number, region, weight in zip(chosen, voxels, weights, strict=True):
            cubes[number] = resample(normalise(region, low, high), weight)
    return [cubes[number] for number in range(len(boxes))]


def _region(
    row: VolumeRecord, level: int, box: Box, shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[NDArray[np.float32], ...]]:
    """The voxels of a level that a box needs, and the weights that make a cube of them."""
    spacing = [fine * factor for fine, factor in zip(row["spacing_mm"], row["levels"][level], strict=True)]
    sides = level_shape(row, level)
    axes = [
        axis_weights(num_in, num_out, origin / unit, extent / unit)
        for num_in, num_out, origin, extent, unit in zip(sides, shape, *box, spacing, strict=True)
    ]
    return tuple(region for region, _ in axes), tuple(weight for _, weight in axes)
