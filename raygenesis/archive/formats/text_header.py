"""Headers of lines of text, as MetaImage and NRRD have them: split, and checked field by field.

Only what is checked here is handed on, in lines of our own (`CheckedHeader`): no other parser sees the file's header,
so that none can find in it what was not seen here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raygenesis.archive.formats.regular_files import require_regular
from raygenesis.errors import ScanError

# A header has no more.
HEADER_BYTES = 65536

# What a checked header calls the file of voxels.
VOXELS = "voxels"

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?")
WORD = re.compile(r"[A-Za-z0-9?*_.-]{1,40}")


@dataclass(frozen=True)
class CheckedHeader:
    """A header whose every line was written here from fields that were checked.

    text: names the file of voxels VOXELS, and says where in it they begin. voxels: that file. is_packed: whether its
    voxels may take less room there than in memory.
    """

    text: str
    voxels: Path
    is_packed: bool


def header_lines(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the lines of a header, without their ends, each with the place in the file at which the next one begins.

    What follows a header is no text: take no line more than it has. Raises ScanError for a line with a character at
    which another reader may split it.
    """
    require_regular(path)
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES).decode("latin-1")
    start = 0
    while start < len(head):
        end = head.find("\n", start)
        if end < 0 and len(head) == HEADER_BYTES:
            return
        end = len(head) if end < 0 else end
        line = head[start:end].removesuffix("\r")
        if re.search(r"[\r\0\v\f]", line):
            raise ScanError("its header has a bare carriage return, or another character that is no text, in a line")
        yield line, min(end + 1, len(head))
        start = end + 1


def words(name: str, value: str, pattern: re.Pattern[str], count: int) -> str:
    """The value of a field of `count` words, with one blank between them. Raises ScanError if it is another."""
    found = value.split()
    if len(found) != count or not all(pattern.fullmatch(word) for word in found):
        raise ScanError(f"its header's {name} is not {count} {'value' if count == 1 else 'values'} as the format has")
    return " ".join(found)


def whole(name: str, value: str, least: int, most: int) -> int:
    """The value of a field that is one whole number. Raises ScanError if it is not, or out of bounds."""
    number = int(words(name, value, WHOLE, 1))
    if not least <= number <= most:
        raise ScanError(f"its header's {name} is {number}: expected {least} to {most}")
    return number
