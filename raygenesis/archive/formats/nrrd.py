"""NRRD in one file (.nrrd)."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from raygenesis.archive.grid import MM_PER_UNIT, mm_per
from raygenesis.errors import ScanError

# Fields that are handed on, by their names without blanks, and as they are written; others decide nothing.
OF_ONE_WORD = {"space": "space", "endian": "endian", "encoding": "encoding"}
OF_EACH_AXIS = {
    "sizes": ("sizes", WHOLE),
    **{name.replace(" ", ""): (name, re.compile(rf"{NUMBER.pattern}|[nN][aA][nN]"))
       for name in ("spacings", "thicknesses", "axis mins", "axis maxs")},
    "centers": ("centers", WORD), "centerings": ("centerings", WORD), "kinds": ("kinds", WORD),
}  # fmt: skip
VECTORS = {"spacedirections": "space directions", "spaceorigin": "space origin"}
PLAIN = {"type", "dimension", "spacedimension", "lineskip", "byteskip"}

MAGIC = re.compile(r"NRRD000[1-6]")
TYPE = re.compile(r"(?!block)[a-z][a-z0-9_ ]{1,40}")
VECTOR = re.compile(r"none|\([^()]*\)")
MAX_DIMENSION, MAX_SPACE_DIMENSION = 16, 8
ENCODINGS = {"raw": False, "gzip": True, "gz": True, "ascii": True, "text": True, "txt": True, "hex": False}

# Spaces whose axes have a direction in the patient.
ANATOMICAL = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")


class Nrrd(SimpleITKFormat):
    suffixes = (".nrrd",)
    image_io = "NrrdImageIO"

    def checked_header(self, path: Path) -> CheckedHeader:
        fields, num_lines = _read(path)
        if "datafile" in fields:
            raise ScanError("its header names another file for the voxels: save it as a single .nrrd")
        dimension = whole("dimension", fields.get("dimension", ""), 1, MAX_DIMENSION)
        kind = " ".join(fields.get("type", "").lower().split())
        if not TYPE.fullmatch(kind):
            raise ScanError("its header's type is none of voxels")
        lines = {"type": kind, "dimension": str(dimension)}
        if "spacedimension" in fields:
            lines["space dimension"] = str(whole("space dimension", fields["spacedimension"], 1, MAX_SPACE_DIMENSION))
        for name in OF_ONE_WORD.keys() & fields.keys():
            lines[name] = words(name, fields[name], WORD, 1)
        for name, (written, pattern) in OF_EACH_AXIS.items():
            if name in fields:
                lines[written] = words(written, fields[name], pattern, dimension)
        for name, written in VECTORS.items():
            if name in fields:
                lines[written] = _vectors(written, fields[name], 1 if name == "spaceorigin" else dimension)
        encoding = lines.get("encoding", "").lower()
        if encoding not in ENCODINGS:
            raise ScanError(f"its encoding is not supported: expected {', '.join(ENCODINGS)}")
        # Lines before the voxels are skipped before anything is unpacked, bytes after that.
        skipped = num_lines + whole("line skip", fields.get("lineskip", "0"), 0, 2**31 - 1 - num_lines)
        lines["line skip"] = str(skipped)
        lines["byte skip"] = str(whole("byte skip", fields.get("byteskip", "0"), -1, 2**31 - 1))
        text = "".join(f"{name}: {value}\n" for name, value in lines.items())
        return CheckedHeader(f"NRRD0005\n{text}data file: {VOXELS}\n\n", path, ENCODINGS[encoding])

    def stated(self, path: Path, num_axes: int) -> Stated:
        fields, _ = _read(path)
        space = fields.get("space", "").lower().removesuffix("-time")
        return Stated(_mm_per_unit(fields), _has_size(fields, num_axes), space in ANATOMICAL)


def _read(path: Path) -> tuple[Mapping[str, str], int]:
    """The fields of a header, in lower case without blanks, and the number of its lines with the empty one at its end.

    Key and value pairs and comments are passed by.
    """
    fields: dict[str, str] = {}
    for number, (line, _) in enumerate(header_lines(path), 1):
        if number == 1:
            if not MAGIC.fullmatch(line):
                raise ScanError("not readable as NRRD (its first line is not NRRD000 and a digit)")
        elif not line:
            return fields, number
        elif ":" in line and ":=" not in line and not line.startswith("#"):
            field, _, value = line.partition(":")
            name = field.replace(" ", "").lower()
            if name in fields and name in OF_ONE_WORD.keys() | OF_EACH_AXIS.keys() | VECTORS.keys() | PLAIN:
                raise ScanError(f"its header has {name} twice")
            fields[name] = value.strip()
    if "datafile" in fields:
        raise ScanError("its header names another file for the voxels: save it as a single .nrrd")
    raise ScanError("its header has no end: an empty line comes before the voxels")


def _vectors(name: str, value: str, count: int) -> str:
    """So many vectors such as (0,0,1.5), or `none`. Raises ScanError if the value is anything else."""
    found = VECTOR.findall(value)
    if len(found) != count or VECTOR.sub("", value).strip():
        raise ScanError(f"its header's {name} is not {count} vectors")
    return " ".join(one if one == "none" else _vector(name, one) for one in found)


def _vector(name: str, text: str) -> str:
    numbers = text[1:-1].split(",")
    if len(numbers) > MAX_SPACE_DIMENSION:
        raise ScanError(f"its header's {name} has a vector of {len(numbers)} numbers")
    return f"({','.join(words(name, number, NUMBER, 1) for number in numbers)})"


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
