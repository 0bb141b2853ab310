"""NRRD in one file (.nrrd)."""

from __future__ import annotations

import re
from pathlib import Path

from raygenesis.archive.formats.simpleitk import SimpleITKFormat, head_of
from raygenesis.errors import ScanError


class Nrrd(SimpleITKFormat):
    suffixes = (".nrrd",)
    image_io = "NrrdImageIO"

    def voxel_file(self, path: Path) -> Path:
        head = head_of(path)
        header, *voxels = re.split(r"\r?\n\r?\n", head, maxsplit=1)
        if head.startswith("NRRD") and (not voxels or re.search(r"^\s*data ?file\s*:", header, re.I | re.M)):
            raise ScanError("its header has no end or names another file for the voxels: save it as a single .nrrd")
        return path
