"""MetaImage (.mha, .mhd with its data file) and NRRD (.nrrd), decoded by SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from raygenesis.archive.volume import LPS_TO_RAS, Volume, canonical, canonical_geometry, check_claim
from raygenesis.errors import ScanError

sitk.ProcessObject.SetGlobalWarningDisplay(False)


# Bytes of a header that name the data file, at most.
HEADER_BYTES = 65536


def data_file(path: Path) -> Path | None:
    """The file of voxels that a .mhd header names, None where it holds them itself, as .mha and .nrrd must.

    Raises ScanError for a list or pattern of files, and for a file that is not beside the header.
    """
    suffix = path.suffix.lower()
    if suffix not in (".mhd", ".mha", ".nrrd"):
        return None
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES).decode("latin-1")
    if suffix == ".nrrd":
        header, *voxels = re.split(r"\r?\n\r?\n", head, maxsplit=1)
        if head.startswith("NRRD") and (not voxels or re.search(r"^\s*data ?file\s*:", header, re.I | re.M)):
            raise ScanError("its header has no end or names another file for the voxels: save it as a single .nrrd")
        return None
    found = re.search(r"^\s*ElementDataFile\s*[=:]\s*(.+?)\s*$", head, re.MULTILINE)
    name = found.group(1) if found else ""
    if name == "LOCAL":
        return None
    if suffix == ".mha":
        raise ScanError("not readable as MetaImage (a .mha has a line ElementDataFile = LOCAL before its voxels)")
    beside = path.with_name(name) if re.fullmatch(r"[^/\\%*\0]+", name) and name not in ("LIST", ".", "..") else None
    if beside is None or not beside.is_file() or beside.is_symlink():
        raise ScanError("ElementDataFile must name one file beside the header")
    return beside


def read_geometry(path: Path, fourth_axis: str) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Shape in voxels and spacing in mm (z y x, or y x, canonical axes) of each volume, from the header alone."""
    reader = _header(path)
    size, affine, ndim = _geometry(reader)
    found = canonical_geometry(size[:3], affine, ndim)
    return [found] * (size[3] if len(size) == 4 and fourth_axis == "split" else 1)


def read(path: Path, fourth_axis: str, max_bytes: int) -> list[Volume]:
    """The volumes of a file: one, or with fourth_axis "split" one a time point. Raises ScanError."""
    reader = _header(path)
    size, affine, ndim = _geometry(reader)
    if len(size) == 4 and fourth_axis == "refuse":
        raise ScanError(f"shape {size} has a fourth axis: choose archive.fourth_axis=split (time points) or channels")
    bits = re.search(r"8|16|32|64", sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    itemsize = int(bits[0]) // 8 if bits else 1
    count = int(np.prod(size, dtype=object)) * reader.GetNumberOfComponents()
    check_claim(count * itemsize, data_file(path) or path, max_bytes, packed=True)
    try:
        image = reader.Execute()
    except RuntimeError:
        raise ScanError("the file is cut short or damaged (SimpleITK cannot decode it)") from None
    voxels = sitk.GetArrayFromImage(image)  # [(t,) z, y, x(, c)]
    num_channels = image.GetNumberOfComponentsPerPixel()
    if num_channels > 1 and len(size) == 4:
        raise ScanError(f"shape {size} with {num_channels} channels: split it into 3D files")
    if num_channels > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    parts = list(voxels) if len(size) == 4 and fourth_axis == "split" else [voxels]
    volumes = []
    for part in parts:
        num_channel_axes = part.ndim - min(reader.GetDimension(), 3)
        stored = part.reshape(*part.shape[:num_channel_axes], *size[:3][::-1])
        turned, place = canonical(stored.T, affine, ndim)
        volumes.append(Volume(turned, place, ndim=ndim))
    return volumes


def _header(path: Path) -> sitk.ImageFileReader:
    data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO({".nrrd": "NrrdImageIO"}.get(path.suffix.lower(), "MetaImageIO"))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise ScanError("not readable as the format that its name ends in (SimpleITK finds no header)") from None
    return reader


def _geometry(reader: sitk.ImageFileReader) -> tuple[tuple[int, ...], NDArray[np.float64], int]:
    """Size x y z (and t), the affine to RAS+ mm, and the number of spatial dimensions."""
    size, num = reader.GetSize(), reader.GetDimension()
    if num not in (2, 3, 4):
        raise ScanError(f"an image of {num} dimensions: expected 2, 3 or 4")
    if 0 in size:
        raise ScanError(f"shape {size} holds no voxels")
    direction = np.eye(3)
    spatial = min(num, 3)
    direction[:spatial, :spatial] = np.reshape(reader.GetDirection(), (num, num))[:spatial, :spatial]
    spacing, origin = np.ones(3), np.zeros(3)
    spacing[:spatial], origin[:spatial] = reader.GetSpacing()[:spatial], reader.GetOrigin()[:spatial]
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ direction * spacing
    affine[:3, 3] = LPS_TO_RAS @ origin
    if num == 2:
        size = (*size, 1)
    return size, affine, 2 if size[2] == 1 else 3
