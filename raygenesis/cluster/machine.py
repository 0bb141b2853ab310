"""What a Ray needs of this machine: a private folder with a short path, open files, shared memory."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import tempfile
from pathlib import Path

from raygenesis.errors import ClusterError

LEAST_FILES, WANTED_FILES = 1024, 8192  # open at once
SOCKET_PATH = 107  # bytes that the path of a socket may have on Linux
# What Ray adds to its folder's path.
LONGEST_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
SHARED_MEMORY = Path("/dev/shm")
FALLBACK = Path("/tmp")


def ray_folder() -> Path:
    """A folder for Ray's sockets, logs and spilled objects, in one that nobody else may enter: Ray's are open to all.

    That lies in RAY_TMPDIR or TMPDIR, unless their paths are too long for sockets. Raises ClusterError if it cannot be
    made.
    """
    base = temporary_base()
    folder = base / f"raygenesis-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():  # somebody else's
            return Path(tempfile.mkdtemp(prefix="rg-", dir=base)) / "ray"
        folder.chmod(0o700)
    except OSError as error:
        raise ClusterError(
            f"{folder}: Ray's files cannot be kept there ({error.strerror or error}): make room in {base}, or set "
            "RAY_TMPDIR to a folder that can be written"
        ) from None
    return folder / "ray"


def temporary_base() -> Path:
    """The folder for temporary files that Ray's sockets fit into."""
    given = [Path(value) for name in ("RAY_TMPDIR", "TMPDIR") if (value := os.environ.get(name))]
    room = SOCKET_PATH - len(f"/raygenesis-{os.getuid()}{LONGEST_SOCKET}")
    return next((base for base in given if len(os.fsencode(base)) <= room and base.is_dir()), FALLBACK)


def raise_open_files() -> None:
    """Let this process, and Ray's that it starts, open as many files as Ray wants, as far as the system allows.

    Raises ClusterError if that is too few for any Ray.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if most < LEAST_FILES:
        raise ClusterError(
            f"this shell allows {most} open files (`ulimit -Hn`) and Ray needs {LEAST_FILES}: raise the limit, in a "
            f"container by --ulimit nofile={WANTED_FILES}"
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def shared_memory_bytes() -> int:
    """Free bytes of the memory that processes share, where Ray keeps objects; 0 where there is none."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return 0
