"""What larger archives cost, at the rates of the workspace (`raygenesis.planning`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raygenesis.archive.work import archive_size
from raygenesis.planning.estimate import Estimate, estimate
from raygenesis.planning.history import as_made, factors_of
from raygenesis.planning.pipeline import pipeline_work
from raygenesis.settings import Settings
from raygenesis.workspace import hardware
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.hardware import Hardware
from raygenesis.workspace.workspace import Workspace

NUM_SCANS = (10**4, 10**5, 10**6)


@dataclass(frozen=True)
class CostRow:
    """A stage. seen: where its rate was measured; estimates: one for each number of scans."""

    stage: str
    seen: str
    estimates: Sequence[Estimate]


@dataclass(frozen=True)
class Total:
    """Totals over all stages: sums, of memory the largest. cost: None where no price is given."""

    seconds: float
    stored_mib: float
    memory_gib: float
    cost: float | None


@dataclass(frozen=True)
class CostSection:
    """num_scans: of this archive and of larger ones, the columns of the table; total: of each column."""

    num_scans: tuple[int, ...]
    scan_mib: float
    hardware: Hardware
    mib_per_s: float
    rows: Sequence[CostRow]
    total: Sequence[Total]


def cost_section(workspace: Workspace, settings: Settings) -> CostSection:
    """Estimates of each stage, and their sums, for this archive and for larger ones, on this machine."""
    scans = archive_size(ARCHIVE.require(workspace.archive))  # the section is left out where there is no archive
    settings = as_made(workspace, settings)
    nodes, factors = hardware.available(), factors_of(workspace, settings)
    numbers = (scans.num_scans, *NUM_SCANS)
    columns = [
        [
            estimate(work, nodes, settings.prices, factors, hardware.MIB_PER_S)
            for work in pipeline_work(replace(scans, num_scans=number), settings)
        ]
        for number in numbers
    ]
    rows = [CostRow(row[0].work.stage, row[0].seen, row) for row in zip(*columns, strict=True)]
    return CostSection(numbers, scans.voxel_mib, nodes, hardware.MIB_PER_S, rows, [_total(each) for each in columns])


def _total(estimates: Sequence[Estimate]) -> Total:
    costs = [one.cost for one in estimates if one.cost is not None]  # of all stages, or of none
    return Total(
        seconds=sum(one.seconds for one in estimates),
        stored_mib=sum(one.stored_mib for one in estimates),
        memory_gib=max(one.memory_gib for one in estimates),
        cost=sum(costs) if costs else None,
    )
