"""Before a stage starts: what it has to do, what that takes of this cluster, and what is too little.

Of what was begun before, all is told.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from raygenesis.archive.intake.found import Found
from raygenesis.cluster import capacity, joining
from raygenesis.cluster.progress import say
from raygenesis.planning import work
from raygenesis.planning.estimate import estimate
from raygenesis.planning.history import factors_of, scans_of
from raygenesis.planning.plan import COMPRESSED
from raygenesis.planning.work import RATES_OF, Scans, Work
from raygenesis.pretraining.pretrain import store_of
from raygenesis.settings import Settings
from raygenesis.text.amounts import GIB, MIB, duration, several, size
from raygenesis.workspace import hardware
from raygenesis.workspace.files import read_json
from raygenesis.workspace.workspace import Workspace


def announce(left: Sequence[Work], workspace: Workspace, settings: Settings) -> None:
    """Say what each stage takes on the cluster that is joined, or on this machine, and warn of what is too little."""
    if not left:
        return
    if joining.is_joined():
        joining.connect()
    nodes, factors = hardware.available(), factors_of(workspace, settings)
    for one in (estimate(each, nodes, settings.prices, factors, hardware.MIB_PER_S) for each in left):
        cores = f"{one.num_cores:g} of {several(nodes.num_cores, 'cores')}"
        on = several(one.num_gpus, "GPUs") if one.num_gpus else cores
        rates = f"at the rates of {one.seen}" if one.seen else f"at shipped rates, of {RATES_OF}"
        cost = "" if one.cost is None else f", {one.cost:,.2f} in cost"
        say(
            one.work.stage,
            f"{one.work.what}: about {duration(one.seconds)} on {on} ({rates}), {size(one.memory_gib * GIB)} of "
            f"memory a node, {size(one.stored_mib * MIB)} to store{cost}",
        )
        _warn(one.work.stage, one.memory_gib, one.stored_mib, workspace)


def _warn(stage: str, memory_gib: float, stored_mib: float, workspace: Workspace) -> None:
    """An estimate refuses nothing: it only warns."""
    there = capacity.least_memory_gib() if joining.is_joined() else hardware.memory_gib()
    if memory_gib > there:
        say(stage, f"warning: {'a node' if joining.is_joined() else 'this machine'} has {there:.1f} GiB of memory")
    if isinstance(workspace.root, Path):
        free_mib = shutil.disk_usage(workspace.root).free / MIB
        if stored_mib > free_mib:
            say(stage, f"warning: only {size(free_mib * MIB)} are free where {workspace.root} is")


def left_to_ingest(found: Found, workspace: Workspace) -> list[Work]:
    """The scans that the archive has not got."""
    made = read_json(workspace.archive / "manifest.json")
    number = found.survey.num_found - (made["counts"]["scans"] if made else 0)
    if number <= 0:
        return []
    files = sum(scan.num_bytes for scan in found.survey.scans) / MIB / max(len(found.survey.scans), 1)
    return [work.ingest(Scans(number, files / COMPRESSED, files))]


def left_to_embed(workspace: Workspace, settings: Settings) -> list[Work]:
    """Training of the auto-encoder, if it is to embed and is not there, and the volumes without an embedding."""
    scans = scans_of(workspace)
    if scans is None:
        return []
    made = read_json(workspace.embeddings / "manifest.json")
    there = made["counts"]["volumes"] + made["counts"]["failures"] if made else 0
    trains = settings.embedding.encoder == "autoencoder" and not (workspace.autoencoder / "manifest.json").is_file()
    left = [work.train_autoencoder(scans, settings)] if trains else []
    if scans.number > there:
        left.append(work.embed(Scans(scans.number - there, scans.voxel_mib, scans.source_mib), settings))
    return left


def left_to_discover(workspace: Workspace, settings: Settings) -> list[Work]:
    """The search for neighbours, and the patterns."""
    scans = scans_of(workspace)
    if scans is None or (workspace.patterns / "manifest.json").is_file():
        return []
    return [work.index(scans, settings), work.discover(settings)]


def left_to_crop(workspace: Workspace, settings: Settings) -> list[Work]:
    """The random crops."""
    scans = scans_of(workspace)
    if scans is None or (workspace.crops / "manifest.json").is_file():
        return []
    return [work.discover(settings, work.num_crops(scans, settings), "crop")]


def left_to_pretrain(workspace: Workspace, settings: Settings, name: str) -> list[Work]:
    """Training on what the store holds."""
    store = read_json(store_of(workspace, settings) / "manifest.json")
    if store is None or (workspace.run(name) / "manifest.json").is_file():
        return []
    return [work.pretrain(settings, *work.selected(settings.pretraining, store["counts"]))]
