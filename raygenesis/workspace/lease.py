"""A lock in an object store: an object that says whose it is, renewed while the job lives.

No clocks of two machines are compared: who waits takes a lease over once it has not changed for so long by the waiter's
clock, and a job that could not renew its lease for so long by its own clock ends.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from raygenesis.errors import WorkspaceError
from raygenesis.text.names import printable
from raygenesis.workspace.conditional import Version, read_version, write_if
from raygenesis.workspace.object_store import RemotePath

LEASE_SECONDS, RENEWAL_SECONDS, POLL_SECONDS = 120.0, 20.0, 5.0
GRACE_SECONDS = 10.0  # for a job that could not renew its lease to end in order, before another takes it over


@dataclass(frozen=True)
class Lease:
    """Who holds a lock.

    owner: of this very claim; until: seconds since 1970 by the holder's clock, for people to read and another at each
    renewal; process_space: where `process` is a number of, see `_process_space`.
    """

    owner: str
    process: int
    host: str
    since: str
    until: float
    process_space: str = ""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"

    @property
    def has_ended(self) -> bool:
        """Whether it is of a process of this machine that has ended."""
        is_here = (self.host, self.process_space) == (socket.gethostname(), _process_space())
        return is_here and self.process_space != "" and not _lives(self.process)

    def encoded(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@contextmanager
def leased(folder: RemotePath) -> Iterator[None]:
    """Hold a folder's lock while the block runs. Raises WorkspaceError if another job holds it.

    What a killed job left is taken over once it is over. A job that could not renew its lease for so long, or whose
    lock another has taken over, is ended.
    """
    hold = _Hold(folder)
    hold.acquire()
    threads = [threading.Thread(target=target, daemon=True) for target in (hold.renew, hold.watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        hold.stopped.set()
        for thread in threads:
            thread.join()
        with suppress(WorkspaceError):  # it is over by itself soon
            hold.release()


class _Hold:
    """This job's hold of a folder. One thread renews it; another watches, as a write may hang."""

    def __init__(self, folder: RemotePath) -> None:
        self._folder = folder
        self._path = folder.with_name(f".{folder.name}.lock")
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        self._lease = Lease(secrets.token_hex(8), os.getpid(), socket.gethostname(), now, 0.0, _process_space())
        self._version: Version
        self._renewed: float  # by the monotonic clock, when the newest write that succeeded was begun
        self.stopped = threading.Event()

    def acquire(self) -> None:
        first, begun = read_version(self._path), time.monotonic()
        version = first
        while True:
            holder = _holder(version)
            is_same = version.generation == first.generation
            is_over = is_same and time.monotonic() - begun >= LEASE_SECONDS + GRACE_SECONDS
            if holder is None or holder.has_ended or is_over:
                if self._write(version):
                    return
            elif is_same:
                time.sleep(POLL_SECONDS)
            else:  # it was renewed
                raise WorkspaceError(
                    f"{self._folder} is being written by another job ({holder}): wait until it ends, or stop it"
                )
            version = read_version(self._path)

    def renew(self) -> None:
        """Renew the lease until the block has ended; end the job if it is somebody else's."""
        while not self.stopped.wait(RENEWAL_SECONDS):
            with suppress(WorkspaceError):  # a store that is away for a while
                while not self._write(self._version):
                    if (other := self._taken_over()) is not None:
                        self._end(f"its lock is now held by {other}, as this job could not renew it in time")
                        return

    def watch(self) -> None:
        """End the job once its lease was not renewed for as long as it holds, while a write may still hang."""
        while (left := self._renewed + LEASE_SECONDS - time.monotonic()) > 0:
            if self.stopped.wait(left):
                return
        self._end(f"{self._lease} could not renew its lock for {LEASE_SECONDS:.0f} s, and others may take it over")

    def release(self) -> None:
        """Say that nobody holds the lock, unless another does: by an empty object, as removal has no condition."""
        while write_if(self._path, b"", self._version) is None and self._taken_over() is None:
            pass

    def _write(self, version: Version) -> bool:
        """Write the lease, with its time anew; whether the object was as it was read."""
        begun = time.monotonic()
        lease = replace(self._lease, until=time.time() + LEASE_SECONDS)
        written = write_if(self._path, lease.encoded(), version)
        if written is not None:
            self._version, self._renewed = written, begun
        return written is not None

    def _taken_over(self) -> str | None:
        """Who else holds the lock; None where this job does, which then goes on from a write whose answer was lost."""
        version = read_version(self._path)
        holder = _holder(version)
        if holder is None or holder.owner != self._lease.owner:
            return str(holder or "nobody")
        self._version = version
        return None

    def _end(self, reason: str) -> None:
        """Say why and end the process in order, unless the block has ended."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        sentence = (
            f"raygenesis: {self._folder} is no longer this job's ({reason}): see to the network and the store, and "
            "that no other job writes there, then run the same command again, which goes on"
        )
        with suppress(OSError):  # nobody reads it
            print(printable(sentence), file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def _holder(version: Version) -> Lease | None:
    """Who holds a lock; None where nobody does, or what is there is no lease."""
    try:
        return Lease(**json.loads(version.content or b"null"))
    except (TypeError, ValueError):
        return None


def _process_space() -> str:
    """The boot of the system and the namespace that process numbers belong to, "" where the system does not say.

    Containers may share a host's name and not its processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
