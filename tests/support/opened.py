"""Whether a file was opened, by whatever code: the kernel says."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

IN_OPEN = 0x20
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def watching(path: Path) -> Iterator[Callable[[], bool]]:
    """Watch a file; what is yielded returns whether it was opened since the last call."""
    watch = LIBC.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0 and LIBC.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) >= 0, os.strerror(
        ctypes.get_errno()
    )

    def was_opened() -> bool:
        try:
            return bool(os.read(watch, 2**16))
        except BlockingIOError:
            return False

    try:
        yield was_opened
    finally:
        os.close(watch)
