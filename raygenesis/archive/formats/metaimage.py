"""MetaImage: .mha, and .mhd with its file of voxels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raygenesis.archive.formats.simpleitk import SimpleITKFormat, Stated
from raygenesis.archive.formats.text_header import (
    NUMBER,
    VOXELS,
    WHOLE,
    WORD,
    CheckedHeader,
    header_lines,
    whole,
    words,
)
from raygenesis.archive.grid import mm_per
from raygenesis.errors import ScanError

Count = Callable[[int], int]
ONE: Count = lambda ndim: 1  # noqa: E731
EACH: Count = lambda ndim: ndim  # noqa: E731
SQUARE: Count = lambda ndim: ndim * ndim  # noqa: E731

# The fields that are handed on: what their words are, and how many there are by the number of dimensions. Others, such
# as names and comments, decide nothing.
FIELDS: dict[str, tuple[re.Pattern[str], Count]] = {
    **dict.fromkeys(("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"), (WORD, ONE)),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), (NUMBER, SQUARE)),
    **dict.fromkeys(("Offset", "Position", "Origin", "CenterOfRotation"), (NUMBER, EACH)),
    **dict.fromkeys(("ElementSpacing", "ElementSize"), (NUMBER, EACH)),
    "DimSize": (WHOLE, EACH),
    **dict.fromkeys(("ElementNumberOfChannels", "ElementType", "AnatomicalOrientation"), (WORD, ONE)),
}  # fmt: skip
MAX_NDIMS = 10
DATA, LOCAL = "ElementDataFile", "LOCAL"


@dataclass(frozen=True)
class _Header:
    """Fields by name, that of the file of voxels last, and the place in the file at which the header ends."""

    fields: Mapping[str, str]
    num_bytes: int


class MetaImage(SimpleITKFormat):
    suffixes = (".mha", ".mhd")
    image_io = "MetaImageIO"

    def checked_header(self, path: Path) -> CheckedHeader:
        header = _read(path)
        voxels = _voxel_file(path, header)
        fields = header.fields
        ndim = whole("NDims", fields.get("NDims", ""), 1, MAX_NDIMS)
        if fields.get("ObjectType", "Image") != "Image":
            raise ScanError("a MetaIO object that is no image (ObjectType)")
        checked = {
            name: words(name, fields[name], pattern, count(ndim))
            for name, (pattern, count) in FIELDS.items()
            if name in fields
        }
        is_packed = checked.get("CompressedData", "F")[0] in "Tt1"
        is_text = checked.get("BinaryData", "T")[0] not in "Tt1"
        begin = whole("HeaderSize", fields.get("HeaderSize", "0"), -1, 2**31 - 1)
        if voxels is None:
            if begin:
                raise ScanError("HeaderSize belongs to a file of voxels beside the header, and it has none")
            begin = header.num_bytes
        there = (voxels or path).stat().st_size - max(begin, 0)
        if is_packed:
            size = whole("CompressedDataSize", fields.get("CompressedDataSize", str(max(there, 0))), 0, 2**62)
            if size > there:
                raise ScanError(f"the file is cut short or damaged ({there:,} of {size:,} bytes of packed voxels)")
            checked["CompressedDataSize"] = str(size)
        lines = {"ObjectType": "Image", "NDims": str(ndim), **checked, "HeaderSize": str(begin), DATA: VOXELS}
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        return CheckedHeader(text, voxels or path, is_packed or is_text)

    def stated(self, path: Path, num_axes: int) -> Stated:
        fields = _read(path).fields
        unit = fields.get("DistanceUnits", "").strip()
        return Stated(
            mm_per_unit=mm_per(unit) if unit not in ("", "?") else 1.0,
            has_size=["ElementSpacing" in fields or "ElementSize" in fields] * num_axes,
            has_orientation=not fields.keys().isdisjoint(("TransformMatrix", "Orientation", "Rotation")),
        )


def data_file(path: Path) -> Path | None:
    """The file of voxels that a .mhd header names, None where it holds them itself, as a .mha must.

    Raises ScanError for a list or pattern of files, and for a file that is not beside the header.
    """
    return _voxel_file(path, _read(path))


def _read(path: Path) -> _Header:
    """The fields of a header, which ends with the one that says where the voxels are."""
    fields: dict[str, str] = {}
    end = 0
    for line, place in header_lines(path):
        end = place
        name, *value = (part.strip() for part in re.split("[=:]", line, maxsplit=1))
        if not (name or value):
            continue
        if not value:
            raise ScanError(f"not readable as MetaImage (a line before {DATA} is no field and its value)")
        if name in fields and name in FIELDS.keys() | {"NDims", "HeaderSize", "CompressedDataSize"}:
            raise ScanError(f"its header has {name} twice")
        fields[name] = value[0]
        if name == DATA:
            break
    return _Header(fields, end)


def _voxel_file(path: Path, header: _Header) -> Path | None:
    name = header.fields.get(DATA, "")
    if name == LOCAL:
        return None
    if path.suffix.lower() == ".mha":
        raise ScanError(f"not readable as MetaImage (a .mha has a line {DATA} = {LOCAL} before its voxels)")
    beside = path.with_name(name) if re.fullmatch(r"[^/\\%*\0]+", name) and name not in ("LIST", ".", "..") else None
    if beside is None or not beside.is_file() or beside.is_symlink():
        raise ScanError(f"{DATA} must name one file beside the header")
    return beside
