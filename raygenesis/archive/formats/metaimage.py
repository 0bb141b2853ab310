"""MetaImage: .mha, and .mhd with its file of voxels."""

from __future__ import annotations

import re
from pathlib import Path

from raygenesis.archive.formats.simpleitk import SimpleITKFormat, Stated, head_of
from raygenesis.archive.grid import mm_per
from raygenesis.errors import ScanError


class MetaImage(SimpleITKFormat):
    suffixes = (".mha", ".mhd")
    image_io = "MetaImageIO"

    def voxel_file(self, path: Path) -> Path:
        return data_file(path) or path

    def stated(self, path: Path, num_axes: int) -> Stated:
        fields = dict(re.findall(r"^[ \t]*(\w+)[ \t]*[=:][ \t]*([^\r\n]*)", head_of(path), re.MULTILINE))
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
    found = re.search(r"^\s*ElementDataFile\s*[=:]\s*(.+?)\s*$", head_of(path), re.MULTILINE)
    name = found.group(1) if found else ""
    if name == "LOCAL":
        return None
    if path.suffix.lower() == ".mha":
        raise ScanError("not readable as MetaImage (a .mha has a line ElementDataFile = LOCAL before its voxels)")
    beside = path.with_name(name) if re.fullmatch(r"[^/\\%*\0]+", name) and name not in ("LIST", ".", "..") else None
    if beside is None or not beside.is_file() or beside.is_symlink():
        raise ScanError("ElementDataFile must name one file beside the header")
    return beside
