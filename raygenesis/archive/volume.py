"""A scan in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.grid import spacing_of
from raygenesis.archive.shear import straightening
from raygenesis.errors import ScanError
from raygenesis.text.names import MAX_NAME, printable

# A header may claim any size; deflate cannot pack more than about so many bytes into one, and no other format does.
MAX_COMPRESSION = 1032

# Beyond this a scan is taken for a mistake or an attack; archive.max_scan_gib sets it for an archive.
MAX_BYTES = 16 * 2**30


class LargeScanError(ScanError):
    """A scan claims more bytes of voxels than it may have here. claimed: how many, by its header."""

    def __init__(self, message: str, claimed: int = 0) -> None:
        super().__init__(message)
        self.claimed = claimed


@dataclass(frozen=True)
class Volume:
    """Voxels as the scanner stored them, and where they lie.

    voxels: [z, y, x] (2D: [y, x]), with channels first where there are several ([c, z, y, x]); any integer type or
        float32; the spatial indices rise towards superior, anterior and right (canonical RAS+ axes, slowest first).
    affine: float64 [4, 4], from voxel index (x, y, z) to RAS+ mm, as NIfTI has it.
    slope, intercept: real value = voxel × slope + intercept (Hounsfield units for CT).
    ndim: spatial dimensions, 3 or 2.
    modality: DICOM's code (CT, MR, DX …), empty where the file does not say.
    tags: acquisition facts that identify nobody.
    corrections: what was put right on the way, in words.
    notes: what was assumed, where the files leave it open, in words.
    valid: bool [z, y, x] (2D: [y, x]): which voxels are image, rather than padding or outside of what was scanned;
        None where all are. The others hold the smallest value, and count in no percentile.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0
    ndim: int = 3
    modality: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    corrections: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    valid: NDArray[np.bool_] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial sides in voxels: z y x, or y x."""
        return self.voxels.shape[-self.ndim :]

    @property
    def num_channels(self) -> int:
        return self.voxels.shape[0] if self.voxels.ndim > self.ndim else 1

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between voxel centres along each spatial axis (z y x, or y x), in mm."""
        return spacing_of(self.affine, self.ndim)


def straightened(volume: Volume, is_label_map: bool = False) -> Volume:
    """The volume with perpendicular axes, resampled linearly where they are not; a label map takes the nearest voxel.

    Places that no voxel covers get the smallest real value. Raises ScanError for a shear that is too large.
    """
    straight = straightening(volume.shape, volume.affine)
    if straight is None:
        return volume
    voxels = volume.voxels
    valid = np.ones(volume.shape, bool) if volume.valid is None else volume.valid
    background = voxels.min() if volume.slope > 0 or is_label_map else voxels.max()
    words = f"axes that are {straight.degrees:.1f}° from perpendicular straightened by linear resampling"
    return replace(
        volume, voxels=np.ascontiguousarray(straight.apply(voxels, background, is_label_map)), affine=straight.affine,
        corrections=(*volume.corrections, words), valid=straight.apply(valid, False, nearest=True),
    )  # fmt: skip


def without_equal_colours(volume: Volume) -> Volume:
    """The volume with one channel, where it has three that are equal."""
    if volume.num_channels != 3:
        return volume
    red, green, blue = volume.voxels
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        return volume
    words = "three equal colour channels read as grey"
    return replace(volume, voxels=red, corrections=(*volume.corrections, words))


def validate(volume: Volume, fill_nan: float | None = None, is_label_map: bool = False) -> Volume:
    """The volume with a plain type of voxels: native byte order, integers as they came, floats as float32.

    fill_nan: takes the place of values that are not finite. is_label_map: accept an image of a single value, as a label
    map may be. Raises ScanError if the volume is no image: complex voxels, values that are not finite without
    `fill_nan`, a single value, or spacing and rescaling that give no numbers.
    """
    voxels, corrections = volume.voxels, volume.corrections
    if voxels.dtype.kind == "f":
        if voxels.dtype.itemsize > 4:
            corrections += ("64-bit values kept as 32-bit ones",)
        with np.errstate(over="ignore"):
            voxels = voxels.astype(np.float32, copy=False)
        bad = voxels.size - np.count_nonzero(np.isfinite(voxels))
        if bad and fill_nan is None:
            raise ScanError(
                f"{bad:,} of {voxels.size:,} voxels are NaN or infinite: give archive.fill_nan a value to store instead"
            )
        if bad:
            voxels = np.where(np.isfinite(voxels), voxels, np.float32(fill_nan))
            corrections += (f"{bad:,} voxels that were NaN or infinite set to {fill_nan:g}",)
    elif voxels.dtype.kind in "iu":
        voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    else:
        raise ScanError(f"voxels of type {voxels.dtype} are not grey values: expected integers or floats")
    if not voxels.size:
        raise ScanError(f"shape {volume.voxels.shape} holds no voxels")
    if voxels.min() == voxels.max() and not is_label_map:
        raise ScanError(f"every voxel is {voxels.min()}: there is no image")
    if not (np.isfinite(volume.slope) and np.isfinite(volume.intercept)) or volume.slope == 0:
        raise ScanError(f"rescale slope {volume.slope} and intercept {volume.intercept} give no values")
    spacing = np.array(volume.spacing_mm)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ScanError(f"spacing {spacing.tolist()} mm: expected positive numbers")
    # Straight in memory, once: everything after this goes through all voxels.
    voxels = np.ascontiguousarray(voxels)
    return Volume(
        voxels, volume.affine, float(volume.slope), float(volume.intercept), volume.ndim, volume.modality,
        volume.tags, corrections, volume.notes, volume.valid,
    )  # fmt: skip


def valid_voxels(volume: Volume, channel: NDArray[Any]) -> NDArray[Any]:
    """Of one channel of a volume the voxels that show the scan, by which its range of values is measured."""
    return channel if volume.valid is None or not volume.valid.any() else channel[volume.valid]


def check_claim(claimed: int, path: Path, max_bytes: int, packed: bool) -> None:
    """Refuse a header whose voxels the file cannot hold, or that would not fit where a scan should."""
    if claimed > path.stat().st_size * (MAX_COMPRESSION if packed else 1):
        raise ScanError(f"the header claims {claimed:,} bytes of voxels, more than the file can hold")
    check_size(claimed, max_bytes)


def check_size(claimed: int, max_bytes: int, what: str = "voxels") -> None:
    """Refuse more bytes of voxels than a scan may have, or of the files to read before their number is known.

    Raises LargeScanError.
    """
    if claimed > max_bytes:
        limit = f"archive.max_scan_gib={max_bytes / 2**30:g}"
        raise LargeScanError(f"{claimed:,} bytes of {what} are more than {limit}", claimed)


def first_line(error: Exception) -> str:
    """What an exception of a library says, in one line."""
    return printable((str(error).splitlines() or [type(error).__name__])[0], MAX_NAME)
