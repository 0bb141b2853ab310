"""One way into every format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from raygenesis.archive.formats import arrays, dicom, itk, nifti, pictures
from raygenesis.archive.volume import MAX_BYTES, Volume, checked

# Formats that are known by the end of a file's name; each module has `read` and `read_geometry`.
FORMATS: dict[str, ModuleType] = {
    ".nii": nifti, ".nii.gz": nifti, ".mha": itk, ".mhd": itk, ".nrrd": itk, ".npy": arrays, ".npz": arrays,
    ".png": pictures, ".jpg": pictures, ".jpeg": pictures,
}  # fmt: skip

Geometry = tuple[tuple[int, ...], tuple[float, ...]]


def format_of(name: str) -> ModuleType | None:
    """The module that reads a file by the end of its name, None for other names."""
    lower = name.lower()
    return next((module for suffix, module in FORMATS.items() if lower.endswith(suffix)), None)


def read_scan(
    paths: Sequence[Path], fourth_axis: dicom.FourthAxis = "refuse", max_bytes: int = MAX_BYTES,
    fill_nan: float | None = None, may_be_flat: bool = False,
) -> list[Volume]:  # fmt: skip
    """Decode the file of a scan, or the files of its DICOM series, into canonical axes.

    One volume, or several where archive.fourth_axis splits a fourth axis; `may_be_flat`: also of a single value.
    Raises ScanError saying what is wrong.
    """
    module = format_of(paths[0].name)
    if module is None:
        found = dicom.read_series(paths, fourth_axis, max_bytes)
    else:
        found = module.read(paths[0], fourth_axis, max_bytes)
    return [checked(volume, fill_nan, may_be_flat) for volume in found]


def read_scan_geometry(paths: Sequence[Path], fourth_axis: str = "refuse") -> list[Geometry]:
    """Shape in voxels and spacing in mm (z y x, or y x, canonical axes) of each volume, without its voxels."""
    module = format_of(paths[0].name)
    return dicom.read_geometry(paths) if module is None else module.read_geometry(paths[0], fourth_axis)
