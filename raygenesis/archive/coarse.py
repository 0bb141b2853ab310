"""Whole scans from their coarsest level, resampled to one shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import VolumeRecord
from raygenesis.archive.geometry import axis_weights, resample
from raygenesis.archive.intensity import limits, normalise
from raygenesis.archive.store import read_region, volume_folder
from raygenesis.settings import IntensitySettings
from raygenesis.workspace.files import Place


def read_coarse(
    volumes: Place, row: VolumeRecord, shape: Sequence[int], intensity: IntensitySettings
) -> NDArray[np.float32]:
    """The whole scan of a catalogue row, from its coarsest level, as float32 [z, y, x] in [0, 1] of `shape`.

    The field of view is stretched to the shape. Raises ScanError if a chunk is damaged.
    """
    level = len(row["levels"]) - 1
    folder = volume_folder(volumes, row["volume_id"])
    voxels = read_region(folder, level, (slice(None),) * len(shape), intensity.channel)
    # A coarse voxel at an odd end reaches beyond the scan: the extent is the scan's own.
    extents = [side / factor for side, factor in zip(row["shape"], row["levels"][level], strict=True)]
    weights = [
        axis_weights(num_in, num_out, 0.0, extent)[1]
        for num_in, num_out, extent in zip(voxels.shape, shape, extents, strict=True)
    ]
    return resample(normalise(voxels, *limits(row, intensity)), weights)
