"""Running a job: its record is kept up to date, and it ends in order when it is asked to stop."""

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
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from raygenesis.cluster import progress
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.job_record import FAILED, RUNNING, STOPPED, SUCCEEDED, JobRecord, jobs_folder, write_job
from raygenesis.cluster.stream_statistics import kept_statistics
from raygenesis.errors import ClusterError, RaygenesisError
from raygenesis.workspace import hardware
from raygenesis.workspace.workspace import Workspace

BEAT_SECONDS, REMOTE_BEAT_SECONDS = 2.0, 15.0  # on a disk; in an object store, where each costs a request
MAX_LINES = 20
CODE_PREFIX = "_ray_pkg_"  # in the path of a folder that `ray job submit --working-dir` sent
TERMINATED = 128 + signal.SIGTERM


@contextmanager
def recorded(verb: str, workspace: Workspace) -> Iterator[None]:
    """Keep the record of the job that the block runs, and end the block in order when the job is asked to stop.

    Raises ClusterError where a workspace's key came along with the job's code.
    """
    _check_what_came_along()
    job = _Job(verb, workspace)
    earlier = _on_termination(job)
    beating = threading.Thread(target=job.beat, daemon=True)
    beating.start()
    state, failure = FAILED, ""
    try:
        yield
        state = SUCCEEDED
    except RaygenesisError as error:
        failure = str(error)
        raise
    except (KeyboardInterrupt, SystemExit):
        state = STOPPED
        job.say_stopped()
        raise
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        job.stopped.set()
        beating.join()
        job.end(state, failure)
        if earlier is not None:
            signal.signal(signal.SIGTERM, earlier)


def _check_what_came_along() -> None:
    """A submitted job runs in a copy of the folder that was given: on machines, and in Ray's storage, of others."""
    copied = Path.cwd()
    if _submission() is None or CODE_PREFIX not in str(copied):
        return
    for folder, names, _ in os.walk(copied):
        if "private" in names and (Path(folder) / "private" / "key").is_file():
            raise ClusterError(
                f"a workspace came along with this job's code, and its private/key with it ({folder}): anyone on the "
                "cluster could read it. Submit from a folder without workspaces, and make the workspace's subjects "
                "anew where the cluster is not yours alone"
            )


def _on_termination(job: _Job) -> Any:
    """Have SIGTERM, by which `ray job stop` and schedulers end a job, unwind it; the earlier handler, if it was set.

    It is said at once: whoever stops a job may not wait until it has unwound.
    """

    def unwind(number: int, frame: FrameType | None) -> None:
        job.say_stopped()
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, unwind)


class _Job:
    def __init__(self, verb: str, workspace: Workspace) -> None:
        now = datetime.now(UTC)
        self._path = jobs_folder(workspace) / f"{now:%Y%m%d-%H%M%S}-{verb}-{secrets.token_hex(2)}.json"
        self._record = JobRecord(
            verb=verb, state=RUNNING, started=_now(), host=socket.gethostname(), process=os.getpid(), core_seconds=0.0,
            gpu_seconds=0.0, updated=_now(), hardware=hardware.available(), stages=(), lines=(),
        )  # fmt: skip
        self._state = RUNNING  # not in the record, which the beat may be replacing when a signal comes
        self._last = time.monotonic()
        self._beat = BEAT_SECONDS if isinstance(workspace.root, Path) else REMOTE_BEAT_SECONDS
        self.stopped = threading.Event()

    def beat(self) -> None:
        """Write the record now and then until the job stops."""
        self._note()
        while not self.stopped.wait(self._beat):
            self._note()

    def say_stopped(self) -> None:
        """Say, once, that the job was asked to stop."""
        if self._state != STOPPED:
            self._state = STOPPED
            progress.say(self._record.verb, "stopped; the same command goes on with what is missing")

    def end(self, state: str, failure: str) -> None:
        self._state = state
        self._record = replace(self._record, error=failure, ended=_now())
        self._note()

    def _note(self) -> None:
        with suppress(Exception):  # a full disk, or a Ray that has ended: the record must not end the job
            self._write()

    def _write(self) -> None:
        now = time.monotonic()
        joining = sys.modules.get("raygenesis.cluster.joining")
        if joining is not None:
            joining.note_hardware()  # nodes come and go
        nodes, job, passed = hardware.available(), self._record, now - self._last
        self._last = now
        self._record = job = replace(
            job, state=self._state, core_seconds=job.core_seconds + passed * nodes.num_cores,
            gpu_seconds=job.gpu_seconds + passed * nodes.num_gpus, updated=_now(), hardware=nodes,
            stages=tuple(ticker.progress() for ticker in progress.tickers()),
            lines=tuple(progress.lines()[-MAX_LINES:]), operators=tuple(kept_statistics()), submission=_submission(),
            dashboard=(joining.dashboard() if joining is not None else "") or None,
        )  # fmt: skip
        write_job(self._path, job)
        for stage in job.stages:
            tags = {"verb": job.verb, "stage": stage.stage, "unit": stage.unit}
            for name, value in (("rate", stage.rate), ("done", stage.done), ("total", stage.total)):
                set_gauge(f"raygenesis_{name}", value, **tags)


def _submission() -> str | None:
    """What `ray job` calls this job, if it was submitted."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return submitted.get("metadata", {}).get("job_submission_id")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
