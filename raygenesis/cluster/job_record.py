"""Records of jobs: what each is doing, how fast, and what it has used, in a file a job that can be read meanwhile."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from raygenesis.cluster.progress import StageProgress
from raygenesis.cluster.stream_statistics import OperatorStatistics
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, write_json
from raygenesis.workspace.hardware import Hardware
from raygenesis.workspace.records import adapter, read_record
from raygenesis.workspace.workspace import Workspace, make_private

RUNNING, SUCCEEDED, FAILED, STOPPED = "running", "succeeded", "failed", "stopped"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What one job has done so far.

    started, updated, ended: times in UTC (ISO 8601). process: its number on `host`. core_seconds, gpu_seconds: what of
    the cluster it has had to itself. hardware: of the cluster, now. stages: oldest first. lines: the newest of its log.
    operators: of the Ray Data pipelines that have ended, oldest first.
    submission: what `ray job` calls it. dashboard: host:port. error: what it failed with; empty if it did not. None:
    not known, or not ended.
    """

    verb: str
    state: str
    started: str
    host: str
    process: int
    core_seconds: float
    gpu_seconds: float
    updated: str
    hardware: Hardware
    stages: tuple[StageProgress, ...]
    lines: Annotated[tuple[str, ...], Field(alias="said")]
    operators: tuple[OperatorStatistics, ...] = ()
    submission: str | None = None
    dashboard: str | None = None
    error: Annotated[str | None, Field(alias="told")] = None
    ended: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether this process is just running the job."""
        return (self.state, self.host, self.process) == (RUNNING, socket.gethostname(), os.getpid())


def jobs_folder(workspace: Workspace) -> Place:
    """Where the records are: they hold lines of the log, which name files."""
    return workspace.private / "jobs"


def write_job(path: Place, job: JobRecord) -> None:
    make_private(path.parent.parent)
    path.parent.mkdir(exist_ok=True)
    write_json(path, adapter(JobRecord).dump_python(job, mode="json", by_alias=True, exclude_none=True))


def read_jobs(workspace: Workspace, most: int) -> tuple[list[JobRecord | WorkspaceError], int]:
    """Read the records of the newest jobs, the newest first, and count all jobs.

    Instead of a record that is damaged there is the error that says so.
    """
    paths: list[Place] = sorted(jobs_folder(workspace).glob("*.json"), key=lambda path: path.name, reverse=True)
    return list(_read(paths[:most])), len(paths)


def _read(paths: list[Place]) -> Iterator[JobRecord | WorkspaceError]:
    for path in paths:
        try:
            job = read_record(path, JobRecord)
        except WorkspaceError as error:
            yield error
        else:
            if job is not None:
                yield job
