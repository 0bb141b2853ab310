"""Files that strangers gave: what is no plain file is never opened."""

from __future__ import annotations

import stat
from pathlib import Path

from raygenesis.errors import ScanError
from raygenesis.workspace.files import BLOCK_BYTES


def require_regular(path: Path) -> None:
    """Raise ScanError for a FIFO, a socket, a device or a folder: opening one may wait for ever, or act on a machine.

    Raises OSError where there is nothing at all.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ScanError("not a regular file but a folder, a pipe or a device, and those are not opened")


def read_through(path: Path) -> None:
    """Read a file from begin to end, if it is a plain one. Raises OSError where that cannot be done."""
    if stat.S_ISREG(path.stat().st_mode):
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass
