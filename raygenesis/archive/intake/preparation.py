"""What may be done to a scan before it is stored: cutting off the air around the body, another voxel size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from raygenesis.archive.geometry import axis_weights, resample
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from raygenesis.settings import ArchiveSettings

# Left around the body, so that its skin is not the image's edge.
MARGIN_MM = 5.0

# The body is looked for on about so many voxels a side.
SEARCH_SIZE = 64


def prepare(volume: Volume, settings: ArchiveSettings) -> Volume:
    """The volume as the settings want it stored, with what was done in its `corrections`. Raises ScanError."""
    if settings.crop_to_body:
        volume = crop_to_body(volume)
    if settings.spacing_mm is not None:
        volume = to_spacing(volume, settings.spacing_mm)
    return volume


def to_spacing(volume: Volume, spacing_mm: Sequence[float]) -> Volume:
    """Resample to a voxel size in mm (z y x, or y x), linearly and without aliasing; the type is kept.

    The extent is kept, so voxels differ from `spacing_mm` by the rounding to whole voxels.
    """
    if len(spacing_mm) != volume.ndim:
        raise ScanError(f"archive.spacing_mm has {len(spacing_mm)} numbers and the scan {volume.ndim} dimensions")
    wanted = [
        max(1, round(side * step / target))
        for side, step, target in zip(volume.shape, volume.spacing_mm, spacing_mm, strict=True)
    ]
    if wanted == list(volume.shape):
        return volume
    weights = [axis_weights(n, num_out, 0, n)[1] for n, num_out in zip(volume.shape, wanted, strict=True)]
    channels = volume.voxels.reshape(-1, *volume.shape)
    voxels = np.stack([resample(channel.astype(np.float32), weights) for channel in channels])
    if volume.voxels.dtype.kind in "iu":
        limits = np.iinfo(volume.voxels.dtype)
        # float32 does not hold the largest integers of 32 bits, nor float64 those of 64: the nearest below.
        wide = voxels.astype(np.float64) if limits.bits > 16 else voxels
        most = limits.max if limits.bits < 64 else np.nextafter(np.float64(limits.max), 0)
        voxels = np.clip(np.rint(wide), limits.min, most)
    voxels = voxels.astype(volume.voxels.dtype).reshape(*volume.voxels.shape[: -volume.ndim], *wanted)
    valid = None if volume.valid is None else resample(volume.valid.astype(np.float32), weights) >= 0.5
    steps = np.ones(3)
    steps[: volume.ndim] = [n / num_out for n, num_out in zip(volume.shape[::-1], wanted[::-1], strict=True)]
    affine = volume.affine.copy()
    # Voxel 0 grows or shrinks about the scan's corner, so its centre moves.
    affine[:3, 3] += affine[:3, :3] @ ((steps - 1) / 2)
    affine[:3, :3] *= steps
    before = " × ".join(f"{step:.4g}" for step in volume.spacing_mm)
    corrections = (*volume.corrections, f"resampled from {before} mm")
    return replace(volume, voxels=voxels, affine=affine, corrections=corrections, valid=valid)


def crop_to_body(volume: Volume) -> Volume:
    """Cut to the box of the largest object brighter than Otsu's threshold, and MARGIN_MM around it."""
    image = volume.voxels if volume.num_channels == 1 else volume.voxels[0]
    image = image.reshape(volume.shape)
    if volume.slope < 0:
        image = -image.astype(np.float32)
    step = max(1, -(-max(volume.shape) // SEARCH_SIZE))
    box = _body_box(image[(slice(None, None, step),) * volume.ndim].astype(np.float32))
    region = []
    for (first, last), side, spacing in zip(box, volume.shape, volume.spacing_mm, strict=True):
        margin = int(np.ceil(MARGIN_MM / spacing)) + step
        region.append(slice(max(0, first * step - margin), min(side, last * step + margin + 1)))
    all_channels: tuple[Any, ...] = (..., *region)
    voxels = volume.voxels[all_channels]
    if voxels.shape == volume.voxels.shape:
        return volume
    affine = volume.affine.copy()
    start = np.zeros(3)
    start[: volume.ndim] = [part.start for part in reversed(region)]
    affine[:3, 3] += affine[:3, :3] @ start
    before = " × ".join(str(side) for side in volume.shape)
    corrections = (
        *volume.corrections,
        f"cropped to the body from {before} voxels at {[part.start for part in region]}",
    )
    valid = None if volume.valid is None else volume.valid[tuple(region)]
    return replace(volume, voxels=voxels, affine=affine, corrections=corrections, valid=valid)


def body(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the largest connected object lies that is brighter than Otsu's threshold; everywhere if there is none."""
    bright = sitk.OtsuThreshold(sitk.GetImageFromArray(image), 0, 1)
    parts = sitk.GetArrayFromImage(sitk.RelabelComponent(sitk.ConnectedComponent(bright), sortByObjectSize=True))
    largest = parts == 1
    return largest if largest.any() else np.ones(image.shape, bool)


def _body_box(image: NDArray[np.float32]) -> list[tuple[int, int]]:
    """First and last index along each axis of the body."""
    return [(int(axis.min()), int(axis.max())) for axis in np.nonzero(body(image))]
