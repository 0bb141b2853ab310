"""Whole scans from their coarsest level, resampled to one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import VolumeRecord
from raygenesis.archive.geometry import axis_weights, resample
from raygenesis.archive.intensity import limits, normalise
from raygenesis.archive.store import LevelRegions, read_levels, volume_folder
from raygenesis.errors import ScanError
from raygenesis.settings import IntensitySettings
from raygenesis.workspace.files import Place


def read_coarse(
    volumes: Place, row: VolumeRecord, shape: Sequence[int], intensity: IntensitySettings
) -> NDArray[np.float32]:
    """The whole scan of a catalogue row, from its coarsest level, as float32 [z, y, x] in [0, 1] of `shape`.

    The field of view is stretched to the shape. Raises ScanError if a chunk is damaged.
    """
    (cube,) = read_coarse_scans(volumes, [row], shape, intensity)
    if isinstance(cube, ScanError):
        raise cube
    return cube


def read_coarse_scans(
    volumes: Place, rows: Sequence[VolumeRecord], shape: Sequence[int], intensity: IntensitySettings
) -> Iterator[NDArray[np.float32] | ScanError]:
    """The scans of many rows, as `read_coarse` gives one, read together; in place of a damaged one, what it raises."""
    whole = [(slice(None),) * len(shape)]
    levels = [LevelRegions(volume_folder(volumes, row["volume_id"]), len(row["levels"]) - 1, whole) for row in rows]
    for row, found in zip(rows, read_levels(levels, intensity.channel), strict=True):
        yield found if isinstance(found, ScanError) else whole_scan(found[0], row, shape, intensity)


def whole_scan(
    voxels: NDArray[Any], row: VolumeRecord, shape: Sequence[int], intensity: IntensitySettings
) -> NDArray[np.float32]:
    """The coarsest level [z, y, x] of a catalogue row's scan, as `read_coarse` returns it."""
    # A coarse voxel at an odd end reaches beyond the scan: the extent is the scan's own.
    extents = [side / factor for side, factor in zip(row["shape"], row["levels"][-1], strict=True)]
    weights = [
        axis_weights(num_in, num_out, 0.0, extent)[1]
        for num_in, num_out, extent in zip(voxels.shape, shape, extents, strict=True)
    ]
    return resample(normalise(voxels, *limits(row, intensity)), weights)
