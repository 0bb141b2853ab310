"""Plan: what a pipeline over so many scans takes on a cluster, stage by stage, before there is either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raygenesis.archive.catalogue import num_held_out
from raygenesis.archive.work import COMPRESSED, archive_size
from raygenesis.cluster.work import GPU_OF, RATES_OF, ArchiveSize
from raygenesis.discovery.patients import check_counts
from raygenesis.errors import SettingsError
from raygenesis.planning.estimate import Estimate, estimate
from raygenesis.planning.history import LEAST_S, factors_of
from raygenesis.planning.pipeline import pipeline_work
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.settings import PretrainingSettings, Settings, merge, settings_from
from raygenesis.text.amounts import GIB, MIB, duration, several, size
from raygenesis.text.tables import aligned
from raygenesis.workspace.artifacts import ARCHIVE, PATTERNS, SWEEPS, TRANSFER
from raygenesis.workspace.hardware import MIB_PER_S, Hardware
from raygenesis.workspace.workspace import Workspace

# MiB of voxels of a scan where no workspace tells: a CT of 512 × 512 × 300, a radiograph of 2000 × 2000, in 16 bits.
SCAN_MIB = {3: 150.0, 2: 7.6}
AFTER = (SWEEPS.verb, TRANSFER.verb)  # what `run` leaves out unless it is asked for it
HEADER = ("stage", "work", "time", "on", "memory a node", "stored", "moved", "cost", "limited by", "rates")


@dataclass(frozen=True)
class Plan:
    """What a pipeline takes.

    scans: how many, and their size. changes: of settings, by their keys below `pretraining`, for all GPUs to be used.
    """

    scans: ArchiveSize
    hardware: Hardware
    mib_per_s: float
    changes: Mapping[str, int]
    estimates: tuple[Estimate, ...]


def plan(
    num_volumes: int | None, hardware: Hardware, settings: Settings, workspace: Workspace | None = None,
    scan_mib: float | None = None, mib_per_s: float = MIB_PER_S,
) -> Plan:  # fmt: skip
    """Estimate each stage.

    num_volumes: as many as the workspace holds when None. With a workspace, its scans' size and what its stages took
    correct the shipped rates. With GPUs, pretraining uses all of them unless the settings were given. scan_mib: of the
    voxels of a scan. mib_per_s: what a node reads from and writes to the workspace. Raises SettingsError.
    """
    archive = None if workspace is None else ARCHIVE.read(workspace.archive)
    scans = _scans(num_volumes, scan_mib, None if archive is None else archive_size(archive), settings.ndim)
    factors = {} if workspace is None else factors_of(workspace, settings)
    changes = _changes_for_gpus(settings.pretraining, settings.given, hardware)
    settings = settings_from(merge(settings.model_dump(mode="json"), {"pretraining": changes}), settings.given)
    _check_hardware(hardware, settings.pretraining)
    if pretext_of(settings.pretraining).store == PATTERNS:
        held_out = num_held_out(scans.num_scans, settings.validation_fraction)
        where = f"of {scans.num_scans:,} scans, each of another subject"
        check_counts(scans.num_scans - held_out, held_out, where, settings.discovery)
    works = pipeline_work(scans, settings)
    estimates = tuple(estimate(work, hardware, settings.prices, factors, mib_per_s) for work in works)
    return Plan(scans, hardware, mib_per_s, changes, estimates)


def lines_of(made: Plan) -> Iterator[str]:
    """A plan for people: a table, and what its figures rest on."""
    scans, hardware, estimates = made.scans, made.hardware, made.estimates
    yield (
        f"{scans.num_scans:,} scans of {scans.voxel_mib:.1f} MiB on {hardware.amount}, "
        f"{several(hardware.num_nodes, 'nodes')}, each reading and writing {made.mib_per_s:g} MiB/s"
    )
    yield from table(estimates)
    if made.changes:
        why = "for pretraining on all GPUs" if hardware.num_gpus else "as there are no GPUs"
        yield f"with {_assignments(made.changes)}, {why}"
    alone = [one for one in estimates if one.work.stage not in AFTER]
    yield f"`raygenesis run`, without {' and '.join(AFTER)}: {duration(sum(one.seconds for one in alone))}"
    yield _notes(estimates)


def _scans(number: int | None, scan_mib: float | None, archive: ArchiveSize | None, ndim: int) -> ArchiveSize:
    """How many scans of what size: as asked for, else as the archive has them, else as is usual."""
    if archive is None:
        archive = ArchiveSize(0, SCAN_MIB[ndim], SCAN_MIB[ndim] * COMPRESSED)
    number = number or archive.num_scans
    if not number:
        raise SettingsError("plan needs a number of scans: give --volumes, or --workspace with an archive")
    voxel_mib = scan_mib or archive.voxel_mib
    return ArchiveSize(number, voxel_mib, voxel_mib * (archive.source_mib / archive.voxel_mib))


def _check_hardware(hardware: Hardware, settings: PretrainingSettings) -> None:
    """Raise SettingsError for hardware that there cannot be, or that pretraining would refuse."""
    if hardware.num_nodes > hardware.num_cores:
        raise SettingsError(f"--nodes {hardware.num_nodes} is more than --cpus {hardware.num_cores}, the cores of all")
    if settings.use_gpu and not hardware.num_gpus:
        raise SettingsError("pretraining.use_gpu=true needs GPUs: give --gpus, or leave it out")


def _changes_for_gpus(settings: PretrainingSettings, given: frozenset[str], hardware: Hardware) -> dict[str, int]:
    """With what pretraining takes all GPUs, or cores for want of them; nothing where it was given how it runs."""
    if given & {"pretraining.use_gpu", "pretraining.num_workers"} or not (hardware.num_gpus or settings.use_gpu):
        return {}
    return {"use_gpu": bool(hardware.num_gpus), "num_workers": max(hardware.num_gpus, 1)}


def _assignments(changes: Mapping[str, int]) -> str:
    return " ".join(f"pretraining.{key}={str(value).lower()}" for key, value in changes.items())


def table(estimates: Sequence[Estimate]) -> list[str]:
    """Lines of aligned columns, the last of them the sums."""
    rows = [HEADER, *map(_cells, estimates), _total(estimates)]
    if estimates[0].cost is None:
        rows = [(*row[:7], *row[8:]) for row in rows]
    return aligned(rows)


def _cells(one: Estimate) -> tuple[str, ...]:
    on = several(one.num_cores, "cores")
    if one.num_gpus:
        on = several(one.num_gpus, "GPUs") + f" of {size(one.work.gpu_gib * GIB)}" * (one.work.gpu_gib > 0)
    cost = "" if one.cost is None else f"{one.cost:,.2f}"
    return (
        one.work.stage, one.work.what, duration(one.seconds), on, size(one.memory_gib * GIB),
        size(one.stored_mib * MIB), size(one.moved_mib * MIB), cost, one.limit, one.seen or "shipped",
    )  # fmt: skip


def _total(estimates: Sequence[Estimate]) -> tuple[str, ...]:
    cost = "" if estimates[0].cost is None else f"{sum(one.cost or 0 for one in estimates):,.2f}"
    slowest = max(estimates, key=lambda one: one.seconds)
    sums = replace(
        slowest, seconds=sum(one.seconds for one in estimates), stored_mib=sum(one.stored_mib for one in estimates),
        moved_mib=sum(one.moved_mib for one in estimates), memory_gib=max(one.memory_gib for one in estimates),
    )  # fmt: skip
    return (
        "all", "", duration(sums.seconds), "", size(sums.memory_gib * GIB), size(sums.stored_mib * MIB),
        size(sums.moved_mib * MIB), cost, f"most time: {slowest.work.stage}", "",
    )  # fmt: skip


def _notes(estimates: Sequence[Estimate]) -> str:
    shipped = [one.work.stage for one in estimates if not one.seen]
    note = "all rates are this workspace's"
    if shipped:
        note = (
            f"rates of {', '.join(shipped)}: shipped, of {RATES_OF}, as no workspace had {LEAST_S:g} s of such work to "
            "learn them from"
        )
    if any(one.num_gpus and not one.seen for one in estimates):
        note += f", and {GPU_OF}"
    return f"{note}; an estimate is good to a factor of two"
