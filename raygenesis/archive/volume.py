"""A scan in memory."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from raygenesis.errors import ScanError
from raygenesis.text.names import MAX_NAME, printable

# ITK and DICOM count towards left and posterior, NIfTI and this project towards right and anterior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])

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
    corrections: what was changed on the way, in words.
    """

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0
    ndim: int = 3
    modality: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    corrections: tuple[str, ...] = ()

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


def spacing_of(affine: NDArray[np.float64], ndim: int) -> tuple[float, ...]:
    """Lengths of the affine's columns, slowest axis first, in mm."""
    xyz = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(float(step) for step in xyz[:ndim][::-1])


def canonical(voxels: NDArray[Any], affine: NDArray[np.float64], ndim: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Turn [x, y, z] or [x, y, z, c] in any orientation into a Volume's order of axes; a view where possible.

    `affine` leads from stored indices to RAS+ mm. With ndim 2 the z side must be 1 and is dropped. Raises ScanError
    if the affine places voxels nowhere.
    """
    orientation = orientation_of(affine, ndim)
    affine = affine @ inv_ornt_aff(orientation, voxels.shape[:3])
    voxels = apply_orientation(voxels, orientation)
    voxels = voxels.T  # [z, y, x], or [c, z, y, x]
    return (voxels[..., 0, :, :] if ndim == 2 else voxels), affine


class Geometry(NamedTuple):
    """Shape in voxels and spacing in mm of a volume, z y x (2D: y x), in canonical axes."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]


def canonical_geometry(sides: Sequence[int], affine: NDArray[np.float64], ndim: int) -> Geometry:
    """The geometry that `canonical` gives voxels of these sides x y z."""
    order = orientation_of(affine, ndim)[:, 0].astype(int)
    shape, spacing = np.empty(3, int), np.empty(3)
    shape[order] = sides
    spacing[order] = spacing_of(affine, 3)[::-1]
    return Geometry(tuple(shape[:ndim][::-1].tolist()), tuple(spacing[:ndim][::-1].tolist()))


def orientation_of(affine: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    """Canonical axis and direction of each stored axis; of a 2D image the single slice comes last, whatever plane."""
    if not _places_voxels(affine):
        raise ScanError("the affine is singular or not finite, so positions in mm are unknown")
    orientation = io_orientation(affine)
    if ndim == 2:
        across = orientation[2, 0]
        orientation[orientation[:, 0] > across, 0] -= 1
        orientation[2, 0] = 2
    return orientation


def _places_voxels(affine: NDArray[np.float64]) -> bool:
    """Whether every voxel has a place of its own: finite numbers, and three axes that are not in one plane."""
    if not np.isfinite(affine).all():
        return False
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((steps > 0).all() and np.isfinite(steps).all() and abs(np.linalg.det(affine[:3, :3] / steps)) > 1e-6)


def validate(volume: Volume, fill_nan: float | None = None, may_be_flat: bool = False) -> Volume:
    """The volume with a plain type of voxels: native byte order, integers as they came, floats as float32.

    fill_nan: takes the place of values that are not finite. may_be_flat: accept an image of a single value, as a label
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
    if voxels.min() == voxels.max() and not may_be_flat:
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
        volume.tags, corrections,
    )  # fmt: skip


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


def is_transient(error: Exception) -> bool:
    """Whether an error is the machine's and not the file's, such as a lost file server or too little memory."""
    # A damaged file may have its reader look at a place that cannot be: the system says EINVAL.
    lost = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    return lost or isinstance(error, MemoryError)


def first_line(error: Exception) -> str:
    """What an exception of a library says, in one line."""
    return printable((str(error).splitlines() or [type(error).__name__])[0], MAX_NAME)
