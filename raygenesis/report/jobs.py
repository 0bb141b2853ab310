"""The table of the newest jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from raygenesis.cluster.job_record import read_jobs
from raygenesis.cluster.stream_statistics import OperatorStatistics
from raygenesis.errors import WorkspaceError
from raygenesis.settings import PriceSettings
from raygenesis.text.amounts import duration
from raygenesis.text.tables import Rows
from raygenesis.workspace.workspace import Workspace

MOST_JOBS = 20


@dataclass(frozen=True)
class JobsSection:
    """rows: of the table, a job each. num_left_out: earlier jobs. operators: of these jobs' Ray Data pipelines, a row
    each."""

    rows: Rows
    num_left_out: int
    operators: Rows


def jobs_section(workspace: Workspace, prices: PriceSettings) -> JobsSection:
    """The newest jobs with what they had of the cluster; of their records, which name files, only figures are shown."""
    records, num_jobs = read_jobs(workspace, MOST_JOBS)
    rows, operators = [], []
    for job in records:
        if isinstance(job, WorkspaceError):  # which `status` names
            continue
        started, updated = (datetime.fromisoformat(time) for time in (job.started, job.updated))
        row: dict[str, Any] = {
            "job": job.verb, "state": "writes this page" if job.is_own else job.state,
            "started": f"{started:%Y-%m-%d %H:%M}", "took": duration((updated - started).total_seconds()),
            "core time": _or_none(job.core_seconds), "GPU time": _or_none(job.gpu_seconds),
        }  # fmt: skip
        cost = prices.of(job.core_seconds, job.gpu_seconds)
        if cost is not None:
            row["cost"] = cost
        rows.append(row)
        operators += [_operator(one, f"{started:%Y-%m-%d %H:%M}") for one in job.operators]
    return JobsSection(rows, num_jobs - len(rows), operators)


def _operator(one: OperatorStatistics, started: str) -> dict[str, Any]:
    seconds = max(one.working_seconds + one.starved_seconds + one.held_up_seconds, 1e-9)
    return {
        "job of": started, "stage": one.stage, "operator": one.operator, "tasks": one.num_tasks, "rows": one.num_rows,
        "MiB": f"{one.mib:.1f}", "time of its tasks": duration(one.task_seconds),
        "worked": f"{one.working_seconds / seconds:.0%}", "starved": f"{one.starved_seconds / seconds:.0%}",
        "held up": f"{one.held_up_seconds / seconds:.0%}",
    }  # fmt: skip


def _or_none(seconds: float) -> str:
    return duration(seconds) if seconds else "–"
