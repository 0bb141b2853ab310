"""A job's record: what it is doing, how fast, and what it has used, in a file that can be read while it runs."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from raygenesis.cluster import progress
from raygenesis.cluster.gauges import set_gauge
from raygenesis.errors import RaygenesisError
from raygenesis.workspace import hardware
from raygenesis.workspace.files import Place, write_json
from raygenesis.workspace.workspace import Workspace, make_private

BEAT_SECONDS, REMOTE_BEAT_SECONDS = 2.0, 15.0  # on a disk; in an object store, where each costs a request
MOST_SAID = 20  # lines
RUNNING, SUCCEEDED, FAILED, STOPPED = "running", "succeeded", "failed", "stopped"
TERMINATED = 128 + signal.SIGTERM


def jobs_folder(workspace: Workspace) -> Place:
    """Where the records are: they hold lines of the log, which name files."""
    return workspace.private / "jobs"


def is_own(record: Mapping[str, Any]) -> bool:
    """Whether it is of a job that this process is just doing."""
    return (record["state"], record["host"], record["process"]) == (RUNNING, socket.gethostname(), os.getpid())


@contextmanager
def recorded(verb: str, workspace: Workspace) -> Iterator[None]:
    """Keep the record of the job that the block is, and end the block in order when the job is asked to stop."""
    job = _Job(verb, workspace)
    earlier = _on_termination(job)
    beating = threading.Thread(target=job.beat, daemon=True)
    beating.start()
    state, told = FAILED, ""
    try:
        yield
        state = SUCCEEDED
    except RaygenesisError as error:
        told = str(error)
        raise
    except (KeyboardInterrupt, SystemExit):
        state = STOPPED
        job.say_stopped()
        raise
    except BaseException as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        job.stopped.set()
        beating.join()
        job.end(state, told)
        if earlier is not None:
            signal.signal(signal.SIGTERM, earlier)


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
        self._folder = jobs_folder(workspace)
        self._name = f"{now:%Y%m%d-%H%M%S}-{verb}-{secrets.token_hex(2)}"
        self._record: dict[str, Any] = {
            "verb": verb, "state": RUNNING, "started": now.isoformat(timespec="seconds"),
            "host": socket.gethostname(), "process": os.getpid(), "core_seconds": 0.0, "gpu_seconds": 0.0,
        }  # fmt: skip
        self._last = time.monotonic()
        self._beat = BEAT_SECONDS if isinstance(workspace.root, Path) else REMOTE_BEAT_SECONDS
        self.stopped = threading.Event()

    def beat(self) -> None:
        """Write the record now and then until the job stops."""
        self._note()
        while not self.stopped.wait(self._beat):
            self._note()

    def say_stopped(self) -> None:
        """That the job was told to stop, once."""
        if self._record["state"] != STOPPED:
            self._record["state"] = STOPPED
            progress.say(self._record["verb"], "stopped; the same command goes on with what is missing")

    def end(self, state: str, told: str) -> None:
        self._record |= {"state": state, "told": told, "ended": _now()}
        self._note()

    def _note(self) -> None:
        with suppress(Exception):  # a full disk, or a Ray that has ended: the record must not end the job
            self._write()

    def _write(self) -> None:
        now = time.monotonic()
        joining = sys.modules.get("raygenesis.cluster.joining")
        if joining is not None:
            joining.note_hardware()  # nodes come and go
        nodes = hardware.available()
        self._record["core_seconds"] += (now - self._last) * nodes.num_cores
        self._record["gpu_seconds"] += (now - self._last) * nodes.num_gpus
        self._last = now
        stages = [ticker.as_record() for ticker in progress.shown()]
        self._record |= {
            "updated": _now(), "hardware": nodes.as_record(), "stages": stages,
            "said": progress.said()[-MOST_SAID:], **_ray_facts(),
        }  # fmt: skip
        make_private(self._folder.parent)
        self._folder.mkdir(exist_ok=True)
        write_json(self._folder / f"{self._name}.json", self._record)
        for stage in stages:
            tags = {"verb": self._record["verb"], "stage": stage["stage"], "unit": stage["unit"]}
            for name in ("rate", "done", "total"):
                set_gauge(f"raygenesis_{name}", stage[name], **tags)


def _ray_facts() -> dict[str, Any]:
    """Where Ray's dashboard is, and what `ray job` calls this job, where there are such."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    name = submitted.get("metadata", {}).get("job_submission_id")
    facts = {"submission": name} if name else {}
    joining = sys.modules.get("raygenesis.cluster.joining")
    if joining is not None and joining.dashboard():
        facts["dashboard"] = joining.dashboard()
    return facts


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
