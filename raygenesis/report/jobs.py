"""The table of the newest jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from raygenesis.cluster.job import is_own, jobs_folder
from raygenesis.errors import WorkspaceError
from raygenesis.settings import PriceSettings
from raygenesis.text.amounts import duration
from raygenesis.text.tables import Rows
from raygenesis.workspace.files import Place, read_json
from raygenesis.workspace.workspace import Workspace

MOST_JOBS = 20


@dataclass(frozen=True)
class JobsSection:
    """rows: of the table, a job each. num_left_out: earlier jobs."""

    rows: Rows
    num_left_out: int


def jobs_section(workspace: Workspace, prices: PriceSettings) -> JobsSection:
    """The newest jobs with what they had of the cluster; of their records, which name files, only figures are shown."""
    paths: list[Place] = sorted(jobs_folder(workspace).glob("*.json"), key=lambda path: path.name, reverse=True)
    rows = []
    for path in paths[:MOST_JOBS]:
        try:
            job = read_json(path)
        except WorkspaceError:  # which `status` names
            continue
        assert job is not None
        started, updated = (datetime.fromisoformat(job[key]) for key in ("started", "updated"))
        times = {f"{what} time": _or_none(job[f"{what.lower()}_seconds"]) for what in ("core", "GPU")}
        state = "writes this page" if is_own(job) else job["state"]
        row = {"job": job["verb"], "state": state, "started": f"{started:%Y-%m-%d %H:%M}"}
        row |= {"took": duration((updated - started).total_seconds()), **times}
        cost = prices.of(job["core_seconds"], job["gpu_seconds"])
        if cost is not None:
            row["cost"] = cost
        rows.append(row)
    return JobsSection(rows, len(paths) - len(rows))


def _or_none(seconds: float) -> str:
    return duration(seconds) if seconds else "–"
