"""Objects that one of several jobs writes, and locks made of them; in tensorstore's memory in place of a store."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import tensorstore as ts

from raygenesis.archive.intake.identity import open_identity
from raygenesis.errors import PassingError, WorkspaceError
from raygenesis.workspace import conditional, lease
from raygenesis.workspace.conditional import create, read_version, write_if
from raygenesis.workspace.files import locked, publish
from raygenesis.workspace.lease import Lease, leased
from raygenesis.workspace.object_store import RemotePath

FOLDER = RemotePath("s3", "bucket", ("workspace", "archive"))
LOCK = FOLDER.with_name(".archive.lock")


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> ts.KvStore:
    memory = ts.KvStore.open({"driver": "memory"}).result()
    monkeypatch.setattr(conditional, "_open", lambda folder: memory / "".join(f"{part}/" for part in folder.parts))
    monkeypatch.setattr(RemotePath, "require_bucket", lambda self: None)
    return memory


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits that were asked for, none of which is waited."""
    waits: list[float] = []
    monkeypatch.setattr(lease.time, "sleep", waits.append)
    return waits


def other(**changed: object) -> Lease:
    """Of a job on another machine."""
    return replace(Lease("other", 7, "elsewhere", "today", time.time() + 60), **changed)


def test_of_two_jobs_one_writes_and_both_read_the_same() -> None:
    path = FOLDER / "key"
    mine, theirs = read_version(path), read_version(path)
    assert mine.content is None
    assert write_if(path, b"mine", mine) is not None
    assert write_if(path, b"theirs", theirs) is None and read_version(path).content == b"mine"
    create(path, b"late")
    publish(path, lambda aside: aside.write_bytes(b"later"), keep=True)
    assert read_version(path).content == b"mine"
    assert write_if(path, None, theirs) is None and write_if(path, b"new", read_version(path)) is not None
    write_if(path, None, read_version(path))
    assert read_version(path).content is None


def test_a_write_that_went_through_unseen_is_ours() -> None:
    """A connection may break after the store has written, and tensorstore asks again."""
    path = FOLDER / "key"
    version = read_version(path)
    write_if(path, b"mine", version)
    found = write_if(path, b"mine", version)
    assert found is not None and found == read_version(path)


def test_jobs_that_begin_at_once_have_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    contents: dict[RemotePath, bytes] = {}

    def read_text(path: RemotePath) -> str:
        content = read_version(path).content
        if content is None:
            raise FileNotFoundError
        return content.decode()

    class Files:
        private = FOLDER.parent / "private"
        catalog = FOLDER / "catalog.parquet"

    monkeypatch.setattr(RemotePath, "read_text", read_text)
    monkeypatch.setattr(RemotePath, "is_file", lambda path: path in contents)
    keys = []
    begin = threading.Barrier(4)

    def first_ingest() -> None:
        begin.wait()
        keys.append(open_identity(Files, keep_ids=False).key)

    threads = [threading.Thread(target=first_ingest) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 4 and len(set(keys)) == 1


def test_a_lock_is_held_and_given_back() -> None:
    with locked(FOLDER):
        told = json.loads(read_version(LOCK).content)
        assert told["process"] == os.getpid() and 60 < told["until"] - time.time() <= lease.LEASE_SECONDS
    assert read_version(LOCK).content is None
    with pytest.raises(KeyError), leased(FOLDER):
        raise KeyError
    assert read_version(LOCK).content is None


def test_a_lock_that_is_renewed_is_refused_naming_who_holds_it(patient: list[float], monkeypatch) -> None:
    create(LOCK, other().encoded())

    def renew(seconds: float) -> None:
        patient.append(seconds)
        write_if(LOCK, other(until=time.time() + 90).encoded(), read_version(LOCK))

    monkeypatch.setattr(lease.time, "sleep", renew)
    with (
        pytest.raises(WorkspaceError, match=r"archive is being written by another job \(process 7 on els"),
        leased(FOLDER),
    ):
        pass
    assert patient == [lease.POLL_SECONDS] and b"other" in read_version(LOCK).content


@pytest.mark.parametrize(
    "left", [b"", b"no lease", b"[1]", "over", "ended"], ids=["empty", "text", "list", "over", "ended here"]
)
def test_what_a_job_that_is_gone_has_left_is_taken_over(left: bytes | str, patient: list[float]) -> None:
    leases = {"over": other(until=time.time() - 1), "ended": other(host=lease.socket.gethostname(), process=2**22 + 1)}
    create(LOCK, leases[left].encoded() if isinstance(left, str) else left)
    with leased(FOLDER):
        assert json.loads(read_version(LOCK).content)["process"] == os.getpid()
    assert patient == [] and read_version(LOCK).content is None


def test_a_killed_job_elsewhere_is_waited_for_until_its_lease_is_over(patient: list[float], monkeypatch) -> None:
    now = [time.time()]
    monkeypatch.setattr(lease.time, "time", lambda: now[0])
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: (patient.append(seconds), now.append(now.pop() + seconds)))
    create(LOCK, other(until=now[0] + 12).encoded())
    with leased(FOLDER):
        assert len(patient) == 3


def test_a_lease_is_renewed_and_a_job_that_has_lost_it_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.01)
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda *to: ended.append(to) if to[1] else kill(*to))
    with leased(FOLDER):
        first = read_version(LOCK)
        deadline = time.monotonic() + 30
        while read_version(LOCK).generation == first.generation and time.monotonic() < deadline:
            time.sleep(0.01)
        assert read_version(LOCK).generation != first.generation and not ended
        while write_if(LOCK, other().encoded(), read_version(LOCK)) is None:
            pass
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert b"other" in read_version(LOCK).content  # who has it now keeps it


def test_a_store_that_is_away_for_a_while_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    version, calls = create(LOCK, b"") or read_version(LOCK), []

    def away(path: RemotePath, content: bytes, version: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            stopped.set()
        raise PassingError("away")

    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.001)
    monkeypatch.setattr(lease, "write_if", away)
    monkeypatch.setattr(os, "kill", lambda *to: pytest.fail("ended"))
    stopped = threading.Event()
    lease._renew(LOCK, other(until=time.time() + 60), [version], stopped)
    assert len(calls) == 3
