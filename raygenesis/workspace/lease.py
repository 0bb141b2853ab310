"""A lock in an object store: an object that says whose it is and until when, renewed while the job lives."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.conditional import Version, read_version, write_if
from raygenesis.workspace.object_store import RemotePath

LEASE_SECONDS, RENEWAL_SECONDS, POLL_SECONDS = 120.0, 20.0, 5.0


@dataclass(frozen=True)
class Lease:
    """Who holds a lock. owner: of this very claim; until: seconds since 1970."""

    owner: str
    process: int
    host: str
    since: str
    until: float

    @property
    def is_over(self) -> bool:
        """Whether nobody holds it any more: it was not renewed, or its process here has ended."""
        return time.time() > self.until or (self.host == socket.gethostname() and not _lives(self.process))

    def encoded(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@contextmanager
def leased(folder: RemotePath) -> Iterator[None]:
    """Hold a folder's lock while the block runs. Raises WorkspaceError if another job holds it.

    What a killed job left is taken over once it is over. A job whose lock is taken over, as it could not renew it for
    so long, is ended.
    """
    path = folder.with_name(f".{folder.name}.lock")
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    lease = Lease(secrets.token_hex(8), os.getpid(), socket.gethostname(), now, time.time() + LEASE_SECONDS)
    version = _acquired(folder, path, lease)
    held, stopped = [version], threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, lease, held, stopped), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stopped.set()
        renewing.join()
        with suppress(WorkspaceError):  # it is over by itself soon
            write_if(path, None, held[-1])


def _acquired(folder: RemotePath, path: RemotePath, lease: Lease) -> Version:
    first: Version | None = None
    while True:
        version = read_version(path)
        holder = _holder(version)
        if holder is None or holder.is_over:
            written = write_if(path, lease.encoded(), version)
            if written is not None:
                return written
        elif first is not None and version.generation != first.generation:  # it was renewed
            raise WorkspaceError(
                f"{folder} is being written by another job (process {holder.process} on {holder.host} since "
                f"{holder.since}): wait until it ends, or stop it"
            )
        else:
            first = version
            time.sleep(POLL_SECONDS)


def _holder(version: Version) -> Lease | None:
    """Who holds a lock; None where nobody does, or what is there is no lease."""
    try:
        return Lease(**json.loads(version.content or b"null"))
    except (TypeError, ValueError):
        return None


def _renew(path: RemotePath, lease: Lease, held: list[Version], stopped: threading.Event) -> None:
    """Renew a lease until the block has ended; end the process in order if it is somebody else's."""
    until = lease.until
    while not stopped.wait(RENEWAL_SECONDS):
        until_then = time.time() + LEASE_SECONDS
        try:
            written = write_if(path, replace(lease, until=until_then).encoded(), held[-1])
        except WorkspaceError:
            if time.time() < until:
                continue  # a store that is away for a while
            written = None
        if written is None:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        held[:], until = [written], until_then


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
