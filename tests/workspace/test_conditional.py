"""Objects that one of several jobs writes, and locks made of them; in tensorstore's memory in place of a store."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import tensorstore as ts

from raygenesis.archive.intake.identity import open_identity
from raygenesis.errors import PassingError, WorkspaceError
from raygenesis.workspace import conditional, lease
from raygenesis.workspace.conditional import Version, create, read_version, write_if
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


class Clock:
    """A machine's clocks, which go on as it sleeps, and not otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    return clock


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Signals that were sent, none of which arrives; leases are renewed all the time."""
    sent: list[tuple[int, int]] = []
    kill = os.kill
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.005)
    monkeypatch.setattr(os, "kill", lambda *to: sent.append(to) if to[1] else kill(*to))
    return sent


def other(**changed: object) -> Lease:
    """Of a job on another machine."""
    return replace(Lease("other", 7, "elsewhere", "today", time.time() + 60, "boot 1"), **changed)


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert is_so()


def wait_for_renewals(number: int) -> None:
    for _ in range(number):
        before = read_version(LOCK).generation
        wait_until(lambda before=before: read_version(LOCK).generation != before)


def test_of_two_jobs_one_writes_and_both_read_the_same() -> None:
    path = FOLDER / "key"
    mine, theirs = read_version(path), read_version(path)
    assert mine.content is None
    assert write_if(path, b"mine", mine) is not None
    assert write_if(path, b"theirs", theirs) is None and read_version(path).content == b"mine"
    create(path, b"late")
    publish(path, lambda aside: aside.write_bytes(b"later"), keep=True)
    assert read_version(path).content == b"mine"
    assert write_if(path, b"", theirs) is None and write_if(path, b"new", read_version(path)) is not None


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
        assert (told["process"], told["host"]) == (os.getpid(), socket.gethostname())
        assert told["process_space"].endswith(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    assert read_version(LOCK).content == b""  # as stores remove whatever is there
    with pytest.raises(KeyError), leased(FOLDER):
        raise KeyError
    assert read_version(LOCK).content == b""


def test_a_lock_that_is_renewed_is_refused_naming_who_holds_it(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    create(LOCK, other().encoded())

    def renew(seconds: float) -> None:
        clock.sleeps.append(seconds)
        write_if(LOCK, other(until=time.time() + 90).encoded(), read_version(LOCK))

    monkeypatch.setattr(clock, "sleep", renew)
    with (
        pytest.raises(WorkspaceError, match=r"archive is being written by another job \(process 7 on els"),
        leased(FOLDER),
    ):
        pass
    assert clock.sleeps == [lease.POLL_SECONDS] and b"other" in read_version(LOCK).content


def ended_here(**changed: object) -> bytes:
    """A lease of a process that no longer is, by its number on this machine."""
    here = {"host": socket.gethostname(), "process_space": lease._process_space(), "process": 2**22 + 1}
    return other(**here | changed).encoded()


@pytest.mark.parametrize(
    "left", [b"", b"no lease", b"[1]", ended_here()], ids=["released", "text", "list", "ended here"]
)
def test_what_a_job_that_is_gone_has_left_is_taken_over_at_once(left: bytes, clock: Clock) -> None:
    create(LOCK, left)
    with leased(FOLDER):
        assert json.loads(read_version(LOCK).content)["process"] == os.getpid()
    assert clock.sleeps == []


@pytest.mark.parametrize(
    "left",
    [
        other(until=0.0).encoded(), other(until=1e12).encoded(), ended_here(host="elsewhere"),
        ended_here(process_space="another boot 4026531836"), ended_here(process_space=""),
        ended_here(process=os.getpid()),
    ],
    ids=["its clock is late", "its clock is early", "another host", "another namespace", "unknown namespace", "lives"],
)  # fmt: skip
def test_a_job_that_may_live_has_as_long_to_renew_by_the_clock_of_who_waits(left: bytes, clock: Clock) -> None:
    create(LOCK, left)
    with leased(FOLDER):
        assert lease.LEASE_SECONDS < sum(clock.sleeps) < lease.LEASE_SECONDS + 20


def test_without_a_namespace_no_process_is_known_to_have_ended(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that is not Linux."""
    monkeypatch.setattr(lease, "_process_space", lambda: "")
    create(LOCK, ended_here(process_space=""))
    with leased(FOLDER):
        assert sum(clock.sleeps) > lease.LEASE_SECONDS


def test_of_two_that_wait_one_takes_over(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    slower, faster = other(), other(owner="faster", process=8)
    create(LOCK, slower.encoded())

    def write_late(path: RemotePath, content: bytes, version: Version) -> Version | None:
        if read_version(path).content == slower.encoded():
            write_if(path, faster.encoded(), version)
        return write_if(path, content, version)

    monkeypatch.setattr(lease, "write_if", write_late)
    with pytest.raises(WorkspaceError, match="process 8 on elsewhere"), leased(FOLDER):
        pass
    assert read_version(LOCK).content == faster.encoded()


def test_a_lease_is_renewed_and_a_job_that_has_lost_it_is_ended(
    ended: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    with leased(FOLDER):
        wait_for_renewals(2)
        assert not ended
        while write_if(LOCK, other().encoded(), read_version(LOCK)) is None:
            pass
        wait_until(lambda: ended)
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert b"other" in read_version(LOCK).content  # who has it now keeps it
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(
        f"raygenesis: {FOLDER} is no longer this job's (its lock is now held by process 7 on els"
    )
    assert "run the same command again" in sentence


@pytest.mark.parametrize("is_written", [False, True], ids=["away", "answer lost"])
def test_a_store_that_fails_for_a_while_ends_no_job(
    is_written: bool, ended: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = []

    def failing(path: RemotePath, content: bytes, version: Version) -> Version | None:
        if len(failures) < 3 and version.content:
            failures.append(1)
            if is_written:
                assert write_if(path, content, version) is not None or len(failures) > 1
            raise PassingError("away")
        return write_if(path, content, version)

    monkeypatch.setattr(lease, "write_if", failing)
    with leased(FOLDER):
        wait_until(lambda: len(failures) == 3)
        wait_for_renewals(2)
    assert not ended and read_version(LOCK).content == b""


def test_a_lock_is_given_back_though_the_answer_to_its_last_renewal_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.005)
    lost = threading.Event()

    def losing(path: RemotePath, content: bytes, version: Version) -> Version | None:
        written = write_if(path, content, version)
        if version.content and not lost.is_set():
            lost.set()
            stopped.wait(30)
            raise PassingError("away")
        return written

    stopped = threading.Event()
    monkeypatch.setattr(lease, "write_if", losing)
    with leased(FOLDER):
        assert lost.wait(30)
        threading.Timer(0.1, stopped.set).start()  # once the block has ended
    assert read_version(LOCK).content == b""


@pytest.mark.parametrize("is_hanging", [True, False], ids=["a write hangs", "writes fail"])
def test_a_job_that_could_not_renew_for_as_long_as_a_lease_is_ended(
    is_hanging: bool, ended: list[tuple[int, int]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    goes_on = threading.Event()

    def failing(path: RemotePath, content: bytes, version: Version) -> Version | None:
        if version.content and not goes_on.is_set():
            goes_on.wait(30 * is_hanging)
            raise PassingError("away")
        return write_if(path, content, version)

    monkeypatch.setattr(lease, "write_if", failing)
    with leased(FOLDER):
        wait_until(lambda: ended)
        goes_on.set()
    assert ended == [(os.getpid(), signal.SIGTERM)]
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"{FOLDER} is no longer this job's (process {os.getpid()} on {socket.gethostname()} since" in sentence
    assert "could not renew its lock" in sentence and "see to the network and the store" in sentence
    assert read_version(LOCK).content == b""
