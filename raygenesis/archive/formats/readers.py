"""The table of scan formats, and the one way into all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raygenesis.archive.formats.dicom import Dicom
from raygenesis.archive.formats.metaimage import MetaImage
from raygenesis.archive.formats.nifti import Nifti
from raygenesis.archive.formats.nrrd import Nrrd
from raygenesis.archive.formats.numpy_array import NumpyArray
from raygenesis.archive.formats.png_jpeg import PngJpeg
from raygenesis.archive.formats.regular_files import read_through, require_regular
from raygenesis.archive.formats.scan_format import HEAD_BYTES, FourthAxis, ScanFormat
from raygenesis.archive.formats.slices import Uneven
from raygenesis.archive.grid import Geometry
from raygenesis.archive.volume import MAX_BYTES, LargeScanError, Volume, straightened, validate, without_equal_colours
from raygenesis.errors import ScanError

DICOM = Dicom()

FORMATS: tuple[ScanFormat, ...] = (Nifti(), MetaImage(), Nrrd(), NumpyArray(), PngJpeg(), DICOM)

SUFFIXES = tuple(suffix for known in FORMATS for suffix in known.suffixes)


def format_named(name: str) -> ScanFormat | None:
    """The format that claims a file's name, None where none does."""
    return next((known for known in FORMATS if name.lower().endswith(known.suffixes)), None)


def format_of(path: Path) -> ScanFormat | None:
    """The format of a file, by its name or else by its first bytes; None if it is of none.

    Raises ScanError for what is no regular file, and OSError.
    """
    require_regular(path)
    named = format_named(path.name)
    if named is not None:
        return named
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    return next((known for known in FORMATS if known.recognises(head)), None)


def read_scan(
    paths: Sequence[Path], fourth_axis: FourthAxis = "refuse", max_bytes: int = MAX_BYTES,
    fill_nan: float | None = None, uneven: Uneven = None, is_label_map: bool = False,
) -> list[Volume]:  # fmt: skip
    """Decode a scan into canonical, perpendicular axes.

    Args:
        paths: its files; of a format but DICOM the first is enough.
        fourth_axis: what becomes of a fourth axis (`archive.fourth_axis`).
        max_bytes: how many bytes of voxels the scan may have at the most.
        fill_nan: takes the place of values that are not finite, which are a fault where it is None.
        uneven: what becomes of slices that lie too unevenly (`archive.uneven`).
        is_label_map: accept a volume of a single value, and never mix values of neighbouring voxels.

    Returns one volume, or several where `fourth_axis` is "split". Raises ScanError saying what is wrong with the scan,
    OSError where its files cannot be read, whatever its reader made of that.
    """
    try:
        volumes = _reader(paths, uneven).read(paths, fourth_axis, max_bytes)
        valid = (validate(volume, fill_nan, is_label_map) for volume in volumes)
        return [straightened(without_equal_colours(volume), is_label_map) for volume in valid]
    except LargeScanError:
        raise
    except ScanError:
        for path in paths:
            read_through(path)
        raise


def read_scan_geometry(
    paths: Sequence[Path], fourth_axis: FourthAxis = "refuse", uneven: Uneven = None
) -> list[Geometry]:
    """Shape in voxels and spacing in mm of each volume that `read_scan` gives, without reading voxels."""
    return _reader(paths, uneven).read_geometry(paths, fourth_axis)


def _reader(paths: Sequence[Path], uneven: Uneven) -> ScanFormat:
    """The format of a scan. What no format recognises is given to DICOM, which says what it misses."""
    known = format_of(paths[0]) or DICOM
    return Dicom(uneven) if known is DICOM else known
