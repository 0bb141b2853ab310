"""NRRD in one file (.nrrd)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from raygenesis.archive.formats.simpleitk import SimpleITKFormat, Stated, head_of
from raygenesis.archive.grid import MM_PER_UNIT, mm_per
from raygenesis.errors import ScanError

# Spaces whose axes have a direction in the patient.
ANATOMICAL = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")


class Nrrd(SimpleITKFormat):
    suffixes = (".nrrd",)
    image_io = "NrrdImageIO"

    def voxel_file(self, path: Path) -> Path:
        head = head_of(path)
        header, *voxels = re.split(r"\r?\n\r?\n", head, maxsplit=1)
        if head.startswith("NRRD") and (not voxels or re.search(r"^\s*data ?file\s*:", header, re.I | re.M)):
            raise ScanError("its header has no end or names another file for the voxels: save it as a single .nrrd")
        return path

    def stated(self, path: Path, num_axes: int) -> Stated:
        header = re.split(r"\r?\n\r?\n", head_of(path), maxsplit=1)[0]
        found = re.findall(r"^([^:#\r\n]+):[ \t]*([^=\r\n][^\r\n]*)", header, re.MULTILINE)
        fields = {name.lower().replace(" ", ""): value.strip() for name, value in found}
        space = fields.get("space", "").lower().removesuffix("-time")
        return Stated(_mm_per_unit(fields), _has_size(fields, num_axes), space in ANATOMICAL)


def _mm_per_unit(fields: Mapping[str, str]) -> float:
    """Millimetres per unit of the axes, of which those of time and of channels have others."""
    units = {*re.findall(r'"([^"]*)"', fields.get("spaceunits") or fields.get("units", ""))} - {""}
    lengths = {mm_per(unit) for unit in ({unit for unit in units if unit.lower() in MM_PER_UNIT} or units)}
    if len(lengths) > 1:
        raise ScanError("its axes are in different units of length: save it in one")
    return lengths.pop() if lengths else 1.0


def _has_size(fields: Mapping[str, str], num_axes: int) -> list[bool]:
    """Which of the spatial axes have a voxel size: NaN stands where there is none, as of channels."""
    if "spacedirections" in fields:
        return [True] * num_axes
    known = ["nan" not in word.lower() for word in fields.get("spacings", "").split()]
    if len(known) > num_axes:
        known = known[-num_axes:] if not known[0] else known[:num_axes]
    return known or [False] * num_axes
