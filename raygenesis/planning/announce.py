"""Before a stage starts: what its work takes of this cluster, and what is too little."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from raygenesis.cluster import capacity, environment, joining
from raygenesis.cluster.progress import say
from raygenesis.cluster.work import RATES_OF, Work
from raygenesis.planning.estimate import estimate
from raygenesis.planning.history import factors_of
from raygenesis.settings import Settings
from raygenesis.text.amounts import GIB, MIB, duration, several, size
from raygenesis.workspace import hardware
from raygenesis.workspace.workspace import Workspace


def announce(left: Sequence[Work], workspace: Workspace, settings: Settings) -> None:
    """Say what each stage takes on the cluster that is joined, or on this machine, and warn of what is too little."""
    if not left:
        return
    if environment.is_joined():
        joining.connect()
    nodes, factors = hardware.available(), factors_of(workspace, settings)
    for one in (estimate(each, nodes, settings.prices, factors, hardware.MIB_PER_S) for each in left):
        cores = f"{one.num_cores:g} of {several(nodes.num_cores, 'cores')}"
        on = several(one.num_gpus, "GPUs") if one.num_gpus else cores
        beside = f", {size(one.work.gpu_gib * GIB)} of each GPU's" if one.num_gpus and one.work.gpu_gib else ""
        rates = f"at the rates of {one.seen}" if one.seen else f"at shipped rates, of {RATES_OF}"
        cost = "" if one.cost is None else f", {one.cost:,.2f} in cost"
        say(
            one.work.stage,
            f"{one.work.what}: about {duration(one.seconds)} on {on} ({rates}), {size(one.memory_gib * GIB)} of "
            f"memory a node{beside}, {size(one.stored_mib * MIB)} to store{cost}",
        )
        _warn(one.work.stage, one.memory_gib, one.stored_mib, workspace)


def _warn(stage: str, memory_gib: float, stored_mib: float, workspace: Workspace) -> None:
    """An estimate refuses nothing: it only warns."""
    there = capacity.least_memory_gib() if environment.is_joined() else hardware.memory_gib()
    if memory_gib > there:
        say(stage, f"warning: {'a node' if environment.is_joined() else 'this machine'} has {there:.1f} GiB of memory")
    if isinstance(workspace.root, Path):
        free_mib = shutil.disk_usage(workspace.root).free / MIB
        if stored_mib > free_mib:
            say(stage, f"warning: only {size(free_mib * MIB)} are free where {workspace.root} is")
