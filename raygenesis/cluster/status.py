"""What a workspace's jobs are doing, or did, from the records that they keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from raygenesis.cluster.job import REMOTE_BEAT_SECONDS, RUNNING, SUCCEEDED, jobs_folder
from raygenesis.errors import WorkspaceError
from raygenesis.settings import PriceSettings
from raygenesis.text.amounts import duration, several
from raygenesis.workspace.failures import every_failure
from raygenesis.workspace.files import Place, read_json
from raygenesis.workspace.hardware import Hardware
from raygenesis.workspace.workspace import Workspace

# A record of a running job that was not written for so long is of one that was killed.
SILENT_S = 4 * REMOTE_BEAT_SECONDS
MOST_STAGES = 6  # of a running job, the newest


def status(workspace: Workspace, prices: PriceSettings, most: int = 10) -> Iterator[str]:
    """Lines about the newest jobs, the newest first, and about failures.

    Raises WorkspaceError where there was no job.
    """
    records: list[Place] = sorted(jobs_folder(workspace).glob("*.json"), key=lambda path: path.name, reverse=True)
    if not records:
        raise WorkspaceError(f"no job has been run in {workspace.root} yet: start one, such as `raygenesis run`")
    for path in records[:most]:
        yield from _job(path, prices)
    if len(records) > most:
        yield f"earlier jobs: {len(records) - most} (--jobs {len(records)} lists them)"
    told = ", ".join(f"{stage} {len(rows)}" for stage, rows in every_failure(workspace).items() if rows)
    yield f"scans left out: {told or 'none'}" + " (see `raygenesis archive info --failures`)" * bool(told)


def _job(path: Place, prices: PriceSettings) -> Iterator[str]:
    try:
        job = read_json(path)
    except WorkspaceError as error:
        yield str(error).partition(", then")[0]
        return
    assert job is not None
    age = (datetime.now(UTC) - datetime.fromisoformat(job["updated"])).total_seconds()
    took = duration((datetime.fromisoformat(job["updated"]) - datetime.fromisoformat(job["started"])).total_seconds())
    runs = job["state"] == RUNNING
    state = job["state"]
    if runs and age > SILENT_S:
        state = f"not heard of for {duration(age)}: killed, or cut off; the same command goes on with what is missing"
    where = f"process {job['process']} on {job['host']}"
    yield f"{job['verb']}: {state}, since {job['started']} for {took}, {where}" + _submission(job)
    for stage in job["stages"][-1 if state == SUCCEEDED else -MOST_STAGES :]:
        yield f"  {_stage(stage, runs)}"
    yield f"  {_used(job, prices)}"
    if job.get("told"):
        yield f"  {job['told']}"
    elif not runs and job["said"]:
        yield f"  {job['said'][-1]}"
    if runs and age <= SILENT_S:
        if job.get("dashboard"):
            yield f"  dashboard: http://{job['dashboard']} (through a tunnel or port-forward)"
        yield f"  if it seems to hang: `py-spy dump --pid {job['process']}` on {job['host']}, or of a worker there"


def _submission(job: Mapping[str, Any]) -> str:
    return f", `ray job logs {job['submission']}`" if job.get("submission") else ""


def _stage(stage: Mapping[str, Any], runs: bool) -> str:
    """One stage in a line; the time left where it is not done."""
    share = stage["done"] / stage["total"] if stage["total"] else 1.0
    line = f"{stage['stage']}: {stage['done']:,.6g} of {stage['total']:,} {stage['unit']} ({share:.0%})"
    if stage["rate"]:
        line += f", {stage['rate']:,.4g} {stage['unit']}/s"
        if runs and share < 1:
            line += f", {duration((stage['total'] - stage['done']) / stage['rate'])} left"
    return f"{line}; {stage['note']}" if stage["note"] else line


def _used(job: Mapping[str, Any], prices: PriceSettings) -> str:
    """What of the cluster the job has had to itself so far."""
    hours = job["core_seconds"] / 3600, job["gpu_seconds"] / 3600
    there = Hardware(**job["hardware"])
    line = f"{there.amount} on {several(there.num_nodes, 'nodes')}: {hours[0]:.2f} core hours, {hours[1]:.2f} GPU hours"
    cost = prices.of(job["core_seconds"], job["gpu_seconds"])
    return line if cost is None else f"{line}, {cost:,.2f} in cost"
