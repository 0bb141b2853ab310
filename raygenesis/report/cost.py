"""What larger archives cost, at the rates of the workspace (`raygenesis.planning`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raygenesis.archive.work import archive_size
from raygenesis.planning.estimate import Estimate, estimate
from raygenesis.planning.history import as_made, factors_of
from raygenesis.planning.pipeline import pipeline_work
from raygenesis.report.artifact import Contents
from raygenesis.settings import Settings
from raygenesis.workspace import hardware

SCANS = (10**4, 10**5, 10**6)


def cost(contents: Contents, settings: Settings) -> dict[str, Any]:
    """Estimates of each stage, and their sums, for this archive and for larger ones, on this machine."""
    workspace = contents.workspace
    scans = archive_size(workspace)
    assert scans is not None  # the section is left out where there is no archive
    settings = as_made(workspace, settings)
    nodes, factors = hardware.available(), factors_of(workspace, settings)
    columns = [
        [
            estimate(work, nodes, settings.prices, factors, hardware.MIB_PER_S)
            for work in pipeline_work(replace(scans, num_scans=number), settings)
        ]
        for number in (scans.num_scans, *SCANS)
    ]
    return {
        "scans": (scans.num_scans, *SCANS), "scan_mib": scans.voxel_mib,
        "hardware": nodes, "mib_per_s": hardware.MIB_PER_S,
        "rows": [{"stage": row[0].work.stage, "seen": row[0].seen, "costs": row} for row in zip(*columns, strict=True)],
        "total": [_sums(column) for column in columns],
    }  # fmt: skip


def _sums(column: list[Estimate]) -> dict[str, float | None]:
    costs = [one.cost for one in column if one.cost is not None]  # of all stages, or of none
    return {
        "seconds": sum(one.seconds for one in column), "stored_mib": sum(one.stored_mib for one in column),
        "memory_gib": max(one.memory_gib for one in column), "cost": sum(costs) if costs else None,
    }  # fmt: skip
