"""NRRD in one file (.nrrd)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from raygenesis.archive.formats import simpleitk
from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.volume import Geometry, Volume
from raygenesis.errors import ScanError

IMAGE_IO = "NrrdImageIO"


class Nrrd(ScanFormat):
    suffixes = (".nrrd",)

    def companions(self, path: Path) -> Sequence[Path]:
        _check_whole(path)
        return ()

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        _check_whole(paths[0])
        return simpleitk.read(paths[0], IMAGE_IO, paths[0], fourth_axis, max_bytes)

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        _check_whole(paths[0])
        return simpleitk.read_geometry(paths[0], IMAGE_IO, fourth_axis)


def _check_whole(path: Path) -> None:
    """Raise ScanError if the file's header has no end, or names another file for the voxels."""
    head = simpleitk.head_of(path)
    header, *voxels = re.split(r"\r?\n\r?\n", head, maxsplit=1)
    if head.startswith("NRRD") and (not voxels or re.search(r"^\s*data ?file\s*:", header, re.I | re.M)):
        raise ScanError("its header has no end or names another file for the voxels: save it as a single .nrrd")
