"""What a workspace's jobs are doing, or did, from the records that they keep."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from raygenesis.cluster.job import REMOTE_BEAT_SECONDS
from raygenesis.cluster.job_record import RUNNING, SUCCEEDED, JobRecord, read_jobs
from raygenesis.cluster.progress import StageProgress
from raygenesis.errors import WorkspaceError
from raygenesis.settings import PriceSettings
from raygenesis.text.amounts import duration, several
from raygenesis.workspace.failures import every_failure
from raygenesis.workspace.workspace import Workspace

# A record of a running job that was not written for so long is of one that was killed.
SILENT_S = 4 * REMOTE_BEAT_SECONDS
MAX_STAGES = 6  # of a running job, the newest


def status(workspace: Workspace, prices: PriceSettings, most: int = 10) -> Iterator[str]:
    """Lines about the newest `most` jobs, the newest first, and about failures.

    Raises WorkspaceError where there was no job.
    """
    jobs, num_jobs = _some_jobs(workspace, most)
    for job in jobs:
        yield from _job(job, prices)
    if num_jobs > len(jobs):
        yield f"earlier jobs: {num_jobs - len(jobs)} (--jobs {num_jobs} lists them)"
    failures = ", ".join(f"{stage} {len(rows)}" for stage, rows in every_failure(workspace).items() if rows)
    yield f"scans left out: {failures or 'none'}" + " (see `raygenesis archive info --failures`)" * bool(failures)


def job_records(workspace: Workspace, most: int = 10) -> list[JobRecord]:
    """The records of the newest `most` jobs, the newest first. Raises WorkspaceError for a damaged one, or none."""
    jobs, _ = _some_jobs(workspace, most)
    for job in jobs:
        if isinstance(job, WorkspaceError):
            raise job
    return [job for job in jobs if isinstance(job, JobRecord)]


def _some_jobs(workspace: Workspace, most: int) -> tuple[list[JobRecord | WorkspaceError], int]:
    """As `read_jobs`. Raises WorkspaceError where there is none."""
    jobs, num_jobs = read_jobs(workspace, most)
    if not jobs:
        raise WorkspaceError(f"no job has been run in {workspace.root} yet: start one, such as `raygenesis run`")
    return jobs, num_jobs


def _job(job: JobRecord | WorkspaceError, prices: PriceSettings) -> Iterator[str]:
    if isinstance(job, WorkspaceError):
        yield str(job).partition(", then")[0]
        return
    started, updated = (datetime.fromisoformat(time) for time in (job.started, job.updated))
    age = (datetime.now(UTC) - updated).total_seconds()
    runs, state = job.state == RUNNING, job.state
    if runs and age > SILENT_S:
        state = f"not heard of for {duration(age)}: killed, or cut off; the same command goes on with what is missing"
    line = f"{job.verb}: {state}, since {job.started} for {duration((updated - started).total_seconds())}"
    yield f"{line}, process {job.process} on {job.host}" + (f", `ray job logs {job.submission}`" * bool(job.submission))
    for stage in job.stages[-1 if state == SUCCEEDED else -MAX_STAGES :]:
        yield f"  {_stage(stage, runs)}"
    yield f"  {_used(job, prices)}"
    if job.error:
        yield f"  {job.error}"
    elif not runs and job.lines:
        yield f"  {job.lines[-1]}"
    if runs and age <= SILENT_S:
        if job.dashboard:
            yield f"  dashboard: http://{job.dashboard} (through a tunnel or port-forward)"
        yield f"  if it seems to hang: `py-spy dump --pid {job.process}` on {job.host}, or of a worker there"


def _stage(stage: StageProgress, runs: bool) -> str:
    """One stage in a line; the time left where it is not done."""
    share = stage.done / stage.total if stage.total else 1.0
    line = f"{stage.stage}: {stage.done:,.6g} of {stage.total:,} {stage.unit} ({share:.0%})"
    if stage.rate:
        line += f", {stage.rate:,.4g} {stage.unit}/s"
        if runs and share < 1:
            line += f", {duration((stage.total - stage.done) / stage.rate)} left"
    return f"{line}; {stage.note}" if stage.note else line


def _used(job: JobRecord, prices: PriceSettings) -> str:
    """What of the cluster the job has had to itself so far."""
    hours, nodes = (job.core_seconds / 3600, job.gpu_seconds / 3600), job.hardware
    line = f"{nodes.amount} on {several(nodes.num_nodes, 'nodes')}: {hours[0]:.2f} core hours, {hours[1]:.2f} GPU hours"
    cost = prices.of(job.core_seconds, job.gpu_seconds)
    return line if cost is None else f"{line}, {cost:,.2f} in cost"
