"""NIfTI-1 and NIfTI-2: nibabel reads the header, the voxels come straight out of the file or its gzip stream."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from raygenesis.archive.formats.nifti_grid import grid_of
from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.grid import Geometry
from raygenesis.archive.volume import MAX_COMPRESSION, Volume, check_claim, first_line
from raygenesis.errors import ScanError
from raygenesis.workspace.faults import is_of_machine

# What nibabel, NumPy and zlib raise on damaged bytes.
DAMAGE: tuple[Any, ...] = (  # isal says of its exception that it is an instance
    ImageFileError, HeaderDataError, WrapStructError, EOFError, zlib.error, isal_zlib.error, OSError, ValueError,
    OverflowError, KeyError,
)  # fmt: skip

# nibabel mends small faults of a header and logs each: nobody reads that ten thousand times.
QUIET = logging.getLogger("raygenesis.nifti")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False

HEADERS = {348: Nifti1Header, 540: Nifti2Header}
# Hundreds of the intent codes that are CIFTI's own.
CIFTI_INTENTS = 30


class Nifti(ScanFormat):
    suffixes = (".nii", ".nii.gz")

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        path = paths[0]
        with _open(path) as file:
            header = _read_header(file)
            shape = _squeezed(header)
            grid, layout = grid_of(header, shape[:3]), _layout(header, shape, fourth_axis)
            offset, corrections = _voxel_offset(header, file)
            voxels = _read_voxels(path, file, header, offset, max_bytes).reshape(shape, order="F")
        slope, intercept = _rescaling(header)
        if voxels.dtype.names:  # RGB and RGBA: colours become channels, transparency is no image
            voxels = np.stack([voxels[name] for name in voxels.dtype.names[:3]], -1)
            layout = "channels"
        parts = [voxels[..., number] for number in range(shape[3])] if layout == "split" else [voxels]
        corrections += grid.corrections
        return [
            Volume(*grid.turned(part), slope, intercept, grid.ndim, corrections=corrections, notes=grid.notes)
            for part in parts
        ]

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        with _open(paths[0]) as file:
            header = _read_header(file)
        shape = _squeezed(header)
        layout = _layout(header, shape, fourth_axis)
        return [grid_of(header, shape[:3]).geometry] * (shape[3] if layout == "split" else 1)


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return igzip.open(path, "rb") if packed else path.open("rb")


def _read_header(file: BinaryIO) -> Any:
    try:
        begin = file.read(540)
    except DAMAGE as error:
        if is_of_machine(error):
            raise
        raise ScanError(f"the file is cut short or damaged ({first_line(error)})") from None
    try:
        sizes = {int.from_bytes(begin[:4], order) for order in ("little", "big")} & HEADERS.keys()
        if not sizes:
            raise ScanError("not readable as NIfTI (its first number is neither 348 nor 540)")
        size = sizes.pop()
        header = HEADERS[size](begin[:size], check=False)
        stated = header["pixdim"].copy()
        header.check_fix(logger=QUIET)
        header["pixdim"][1:] = stated[1:]  # where they are mended, that is said
    except DAMAGE as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"not readable as NIfTI ({first_line(error)})") from None
    if int(header["intent_code"]) // 100 == CIFTI_INTENTS:
        raise ScanError("CIFTI: values on the brain's surface and no image")
    if not header["magic"].item().startswith((b"n+1", b"n+2")):
        raise ScanError("one half of a NIfTI pair (.hdr and .img): save it as a single .nii")
    return header


def _squeezed(header: Any) -> tuple[int, ...]:
    """Stored shape as x y z or x y z and one more axis; a single slice has z = 1."""
    shape = tuple(int(side) for side in header.get_data_shape())
    if any(side < 1 for side in shape) or not shape:
        raise ScanError(f"shape {shape} holds no voxels")
    full = shape
    shape = shape[:3] + (1,) * (3 - len(shape)) + tuple(side for side in shape[3:] if side > 1)
    if len(shape) > 4:
        raise ScanError(f"shape {full} has {len(full)} dimensions: split it into 3D files")
    if shape[2] != 1 and 1 in shape[:2]:
        raise ScanError(f"shape {full} is a single slice along its first or second axis: store it along the third")
    return shape


def _layout(header: Any, shape: tuple[int, ...], fourth_axis: FourthAxis) -> str:
    """What the fourth axis is: "split" into volumes, "channels", or "" where there is none."""
    if len(shape) == 3:
        return ""
    if header["dim"][4] == 1:  # the fifth axis is that of vectors
        return "channels"
    if fourth_axis == "refuse":
        raise ScanError(f"shape {shape} has a fourth axis: choose archive.fourth_axis=split (time points) or channels")
    return fourth_axis


def _rescaling(header: Any) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ScanError(f"not readable as NIfTI ({first_line(error)})") from None
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _voxel_offset(header: Any, file: BinaryIO) -> tuple[float, tuple[str, ...]]:
    """The byte at which voxels begin, and the correction where the header does not say it."""
    offset = float(header["vox_offset"])
    if offset != 0:
        return offset, ()
    offset = int(header.single_vox_offset)
    file.seek(int(header["sizeof_hdr"]))
    if file.read(1) not in (b"\0", b""):  # an extension, as long as it likes
        raise ScanError("the header says that voxels begin at byte 0, and what else its header holds hides where")
    return offset, (f"the header says that voxels begin at byte 0: read from byte {offset}, where headers end",)


def _read_voxels(path: Path, file: BinaryIO, header: Any, offset: float, max_bytes: int) -> NDArray[Any]:
    """The stored values, flat; of a file that is not packed a view that reads as it is used."""
    dtype = header.get_data_dtype()
    if dtype.kind not in "iufV" or (dtype.names is not None and "R" not in dtype.names):
        raise ScanError(f"voxels of type {dtype} are not grey values: expected integers or floats")
    count = int(np.prod(header.get_data_shape(), dtype=object))
    if not 0 <= offset <= path.stat().st_size * MAX_COMPRESSION:
        raise ScanError(f"the header says that voxels begin at byte {offset:g}, beyond what the file can hold")
    offset = int(offset)
    check_claim(count * dtype.itemsize, path, max_bytes, packed=isinstance(file, igzip.IGzipFile))
    try:
        if not isinstance(file, igzip.IGzipFile):
            return np.memmap(path, dtype, "r", offset, (count,))
        file.seek(offset)
        buffer = np.empty(count * dtype.itemsize, np.uint8)
        view, there = memoryview(buffer), 0
        while there < len(view) and (got := file.readinto(view[there:])):
            there += got
    except DAMAGE as error:
        if is_of_machine(error):
            raise
        raise ScanError(f"the file is cut short or damaged ({first_line(error)})") from None
    if there < len(view):
        raise ScanError(f"the file is cut short or damaged (it ends after {there:,} of {len(view):,} bytes of voxels)")
    return buffer.view(dtype)
