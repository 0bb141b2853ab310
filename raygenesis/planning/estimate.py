"""Estimates: the time, memory, storage, bytes moved and cost of a stage's work on given hardware."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raygenesis.cluster.work import ONE_NODE, Work
from raygenesis.settings import PriceSettings
from raygenesis.text.amounts import several
from raygenesis.workspace.hardware import Hardware

LEAST_SECONDS = 0.01


@dataclass(frozen=True)
class Factor:
    """How much longer than at the shipped rates a stage took, how much more it stored, and on what that was seen."""

    seconds: float = 1.0
    stored: float = 1.0
    seen: str = ""


@dataclass(frozen=True)
class Estimate:
    """The estimate of one stage.

    memory_gib: of the fullest node; cost: None where no price is given; limit: what takes the time.
    """

    work: Work
    num_cores: float
    num_gpus: int
    seconds: float
    memory_gib: float
    stored_mib: float
    moved_mib: float
    cost: float | None
    limit: str
    seen: str


def estimate(
    work: Work, hardware: Hardware, prices: PriceSettings, factors: Mapping[str, Factor], mib_per_s: float
) -> Estimate:
    """Estimate a stage on given hardware.

    factors: by stage, of earlier calls. mib_per_s: MiB/s that a node reads from and writes to the workspace.
    """
    factor = factors.get(work.stage, Factor())
    there = max(hardware.num_cores, 1)  # a cluster whose machines are yet to come
    per_node = there / hardware.num_nodes
    cores = min(there, per_node if work.most_cores == ONE_NODE else work.most_cores)
    gpus = min(hardware.num_gpus, work.most_gpus) if work.gpu_s else 0
    nodes = min(hardware.num_nodes, math.ceil(cores / per_node)) if not gpus else hardware.num_nodes
    stored = work.stored_mib * factor.stored
    on_gpus = several(gpus, "GPUs") if gpus else "no GPU (time of one)"
    terms = {
        _cores(cores, hardware): work.core_s * factor.seconds / cores,
        on_gpus: work.gpu_s * factor.seconds / max(gpus, 1),
        "disk or network": (work.read_mib + stored) / (mib_per_s * nodes),
    }
    limit = max(terms, key=terms.__getitem__)
    start = work.start_s
    seconds = start + terms[limit]
    cost = prices.of(seconds * hardware.num_cores, seconds * hardware.num_gpus, stored / 1024)
    return Estimate(
        work, cores, gpus, max(seconds, LEAST_SECONDS),
        work.memory_gib + work.memory_gib_per_core * math.ceil(cores / nodes), stored, work.read_mib + stored, cost,
        "starting" if start > terms[limit] else limit, factor.seen,
    )  # fmt: skip


def _cores(cores: float, hardware: Hardware) -> str:
    words = several(cores, "cores")
    return words if cores == hardware.num_cores else f"{words} of {hardware.num_cores}"
