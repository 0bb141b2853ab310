"""Names and sentences that come from files: what of them is shown, and which of them may be part of a path.

Whoever writes a file chooses the names in it. They reach people through `printable` and
`reason_text`, and paths through `inner_path`.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from raygenesis.errors import RaygenesisError

# Characters of a name, a sentence and a path that are shown.
MAX_NAME, MAX_SENTENCE, MAX_PATH = 200, 4000, 4096
# What moves a cursor, ends a line, turns the direction of writing or stands for no character.
NOT_SHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
MAX_PART_BYTES = 255  # of a path, on all file systems

# A path from the root of a file system, up to its last name; no ratio such as mm/s, and no URL.
ABSOLUTE = re.compile(r"(?<![\w./:>])/(?:[^/\s:'\"()]+/)+([^/\s:'\"(),]+)")


def printable(text: str, most: int = MAX_SENTENCE) -> str:
    """Text in one line of at most so many characters: what would not be seen is escaped (`\\x1b`), the rest cut."""
    if len(text) > most:
        text = f"{text[: most - 1]}…"
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in NOT_SHOWN else one for one in text
    )


def reason_text(text: str) -> str:
    """Why a file cannot be used, as tables and logs have it: in one line, files by their names and not their folders.

    Every reason that is written down is what this returns: folders may name patients, or whose machine it is.
    """
    return ABSOLUTE.sub(r"\1", printable(text))


def inner_path(name: str) -> PurePosixPath:
    """A name, with "/" between folders, as a path that stays inside of the folder that it is put in.

    Raises RaygenesisError for a name that is absolute, empty or too long, or has `..`, a backslash or a character that
    is not shown in it.
    """
    parts = name.split("/")
    is_plain = name.isprintable() or printable(name, len(name)) == name
    is_inner = all(part not in ("", ".", "..") and len(part.encode()) <= MAX_PART_BYTES for part in parts)
    if not (is_plain and is_inner and "\\" not in name):
        raise RaygenesisError(f"the name {printable(name, MAX_NAME)!r} could lead out of a folder: rename it")
    return PurePosixPath(name)
