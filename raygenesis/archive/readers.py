"""Finding and decoding scan files. Decoding itself is nibabel's."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError

from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError

SUFFIXES = (".nii", ".nii.gz")

# A header may claim any size; deflate cannot pack more than about 1,032 bytes into one.
MAX_COMPRESSION = 1032

# What nibabel, NumPy and zlib raise on damaged bytes.
DAMAGE = (ImageFileError, HeaderDataError, EOFError, zlib.error, OSError, ValueError, OverflowError)


@dataclass(frozen=True)
class ScanFile:
    """A file that may hold a scan: its path below the scans folder, size and modification time."""

    source: str
    num_bytes: int
    mtime_ns: int


def find_scans(folder: Path) -> list[ScanFile]:
    """Every scan file below a folder, sorted by path.

    Raises ScanError if the folder is missing or holds none. Hidden files and folders are left out (DataLad keeps a
    second name of every scan below `.git`), and links that lead out of the folder are not followed.
    """
    if not folder.is_dir():
        raise ScanError(f"scans folder {folder} does not exist or is not a folder")
    root = folder.resolve()
    scans = []
    for path in _files(root):
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                continue
            stat = path.stat()
            scans.append(ScanFile(_source(path, root), stat.st_size, stat.st_mtime_ns))
    if not scans:
        raise ScanError(f"no scan found in {folder}: expected files ending in {' or '.join(SUFFIXES)}")
    return sorted(scans, key=lambda scan: scan.source)


def _files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                yield path


def _source(path: Path, root: Path) -> str:
    source = path.relative_to(root).as_posix()
    try:
        source.encode()
    except UnicodeEncodeError:
        raise ScanError(f"the file name {source!r} is not UTF-8, and tables cannot hold it: rename it") from None
    return source


def read_geometry(path: Path, ndim: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape in voxels and spacing in mm (z y x, or y x, canonical axes) from the header alone."""
    image = _open(path, ndim)
    order = _orientation(image, ndim)[:, 0].astype(int)
    shape = np.empty(3, int)
    spacing = np.empty(3)
    shape[order] = image.shape[:3] if len(image.shape) >= 3 else (*image.shape, 1)
    spacing[order] = np.linalg.norm(image.affine[:3, :3], axis=0)
    return tuple(shape[:ndim][::-1].tolist()), tuple(spacing[:ndim][::-1].tolist())


def read_volume(path: Path, ndim: int) -> Volume:
    """Decode a scan of `ndim` spatial dimensions (3, or 2 for a single slice) into canonical axes.

    Raises ScanError saying what is wrong with the file.
    """
    image = _open(path, ndim)
    try:
        voxels = np.asanyarray(image.dataobj.get_unscaled())
    except DAMAGE as error:
        raise ScanError(f"the file is cut short or damaged ({_first_line(error)})") from None
    voxels = voxels.reshape(_spatial_shape(image.shape))
    orientation = _orientation(image, ndim)
    affine = image.affine @ inv_ornt_aff(orientation, voxels.shape)
    voxels = apply_orientation(voxels, orientation).T
    if ndim == 2:
        voxels = voxels[0]
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    volume = Volume(_plain_dtype(voxels), affine, float(slope), float(intercept))
    _check_values(volume)
    return volume


def _open(path: Path, ndim: int) -> nibabel.nifti1.Nifti1Image:
    try:
        image = nibabel.load(path)
    except DAMAGE as error:
        raise ScanError(f"not readable as NIfTI ({_first_line(error)})") from None
    if not isinstance(image, nibabel.Nifti1Image):
        raise ScanError(f"a {type(image).__name__}, not a NIfTI image")
    shape = _spatial_shape(image.shape)
    if ndim == 3 and min(shape) < 2:
        raise ScanError(f"shape {image.shape} is a single slice, and discovery.cube_shape asks for 3D scans")
    if ndim == 2 and shape[2] != 1:
        raise ScanError(f"shape {image.shape} is a volume, and discovery.cube_shape asks for 2D images")
    claimed = int(np.prod(shape, dtype=object)) * image.get_data_dtype().itemsize
    if claimed > path.stat().st_size * (MAX_COMPRESSION if path.suffix.lower() == ".gz" else 1):
        raise ScanError(f"the header claims {claimed:,} bytes of voxels, more than the file can hold")
    if not _places_voxels(image.affine):
        raise ScanError("the affine is singular or not finite, so positions in mm are unknown")
    return image


def _places_voxels(affine: np.ndarray) -> bool:
    """Whether every voxel has a place of its own: finite numbers, and three axes that are not in one plane."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(
        np.isfinite(affine).all() and (steps > 0).all() and abs(np.linalg.det(affine[:3, :3] / steps)) > 1e-6
    )


def _orientation(image: nibabel.nifti1.Nifti1Image, ndim: int) -> np.ndarray:
    """Canonical axis and direction of each stored axis; of a 2D image the single slice comes last, whatever plane."""
    orientation = io_orientation(image.affine)
    if ndim == 2:
        across = orientation[2, 0]
        orientation[orientation[:, 0] > across, 0] -= 1
        orientation[2, 0] = 2
    return orientation


def _spatial_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Shape as three sides; a fourth axis of length one is dropped."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        raise ScanError(f"shape {shape} has {len(shape)} dimensions: split time points or channels into 3D files")
    if 0 in shape:
        raise ScanError(f"shape {shape} holds no voxels")
    return shape  # type: ignore[return-value]


def _plain_dtype(voxels: np.ndarray) -> np.ndarray:
    """Native byte order, integers as they came, floats as float32. Raises ScanError for colour and complex voxels."""
    kind = voxels.dtype.kind
    if kind == "f":
        return voxels.astype(np.float32)
    if kind in "iu":
        return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    raise ScanError(f"voxels of type {voxels.dtype} are not grey values: expected integers or floats")


def _check_values(volume: Volume) -> None:
    if volume.voxels.dtype.kind == "f":
        bad = int(volume.voxels.size - np.isfinite(volume.voxels).sum())
        if bad:
            raise ScanError(f"{bad:,} of {volume.voxels.size:,} voxels are NaN or infinite")
    if volume.voxels.min() == volume.voxels.max():
        raise ScanError(f"every voxel is {volume.voxels.min()}: there is no image")
    if not (np.isfinite(volume.slope) and np.isfinite(volume.intercept)) or volume.slope == 0:
        raise ScanError(f"rescale slope {volume.slope} and intercept {volume.intercept} give no values")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
