"""MetaImage: .mha, and .mhd with its file of voxels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from raygenesis.archive.formats import simpleitk
from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.volume import Geometry, Volume
from raygenesis.errors import ScanError

IMAGE_IO = "MetaImageIO"


class MetaImage(ScanFormat):
    suffixes = (".mha", ".mhd")

    def companions(self, path: Path) -> Sequence[Path]:
        data = data_file(path)
        return () if data is None else (data,)

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        data = data_file(paths[0]) or paths[0]
        return simpleitk.read(paths[0], IMAGE_IO, data, fourth_axis, max_bytes)

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        data_file(paths[0])
        return simpleitk.read_geometry(paths[0], IMAGE_IO, fourth_axis)


def data_file(path: Path) -> Path | None:
    """The file of voxels that a .mhd header names, None where it holds them itself, as a .mha must.

    Raises ScanError for a list or pattern of files, and for a file that is not beside the header.
    """
    found = re.search(r"^\s*ElementDataFile\s*[=:]\s*(.+?)\s*$", simpleitk.head_of(path), re.MULTILINE)
    name = found.group(1) if found else ""
    if name == "LOCAL":
        return None
    if path.suffix.lower() == ".mha":
        raise ScanError("not readable as MetaImage (a .mha has a line ElementDataFile = LOCAL before its voxels)")
    beside = path.with_name(name) if re.fullmatch(r"[^/\\%*\0]+", name) and name not in ("LIST", ".", "..") else None
    if beside is None or not beside.is_file() or beside.is_symlink():
        raise ScanError("ElementDataFile must name one file beside the header")
    return beside
