"""The main job: every stage from scans to report, each skipped when its artifact is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from raygenesis.archive.catalogue import num_held_out
from raygenesis.archive.formats.readers import read_scan_geometry
from raygenesis.archive.ingest import check_any, ingest
from raygenesis.archive.intake.find import find
from raygenesis.archive.intake.identity import name_for_log, subject_of
from raygenesis.archive.intake.survey import Scan, Survey
from raygenesis.cluster.job import recorded
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, Work, unannounced
from raygenesis.discovery.coordinates import largest_extent
from raygenesis.discovery.crop import crop
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.discovery.patients import check_counts
from raygenesis.errors import ScanError, SettingsError, WorkspaceError
from raygenesis.planning.announce import announce as announce_work
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.pretrain import pretrain
from raygenesis.pretraining.stores import check_pretext
from raygenesis.report.report import report
from raygenesis.settings import Settings, load_settings
from raygenesis.sweeps.sweep import sweep
from raygenesis.text.amounts import sides
from raygenesis.transfer.finetune import finetune
from raygenesis.transfer.statistics import RANDOM
from raygenesis.transfer.targets.description import Description, read_description, read_target
from raygenesis.workspace.artifacts import ARCHIVE, PATTERNS, made_from
from raygenesis.workspace.files import Place
from raygenesis.workspace.workspace import Workspace

# Headers looked at before any work starts; of more scans an even sample.
MAX_HEADERS = 1000


@contextmanager
def job(verb: str, workspace: Workspace, settings: Settings) -> Iterator[Announce]:
    """What every verb runs in: its record is kept; yields what announces its work before it begins."""

    def announce_here(left: Sequence[Work]) -> None:
        announce_work(left, workspace, settings)

    with recorded(verb, workspace):
        yield announce_here


def run(
    scans: Path, workspace: Workspace, settings: Settings, name: str = "default", sweeps: bool = False,
    target: Path | None = None,
    announce: Announce = unannounced,
) -> Place:  # fmt: skip
    """ingest → auto-encoder → embed → index → discover → pretrain → report; returns the report's path.

    Pretext tasks that learn from random crops need no discovery: ingest → crop → pretrain → report. sweeps: after the
    pretraining a sweep, and a pretraining with its best settings, `<name>-best`. target: a file that describes a target
    task, which is then learnt from random weights and from each pretraining. Raises a RaygenesisError before any work
    starts if the settings cannot fit the scans, or a target is at fault.
    """
    watch = Stopwatch()
    workspace.run(name)  # a name that is no name is refused before any work
    description = None if target is None else _readable(target, settings)
    if sweeps:
        _check_sweep(settings)
    found = find(scans, workspace)
    check_any(scans, found)
    check_settings(found.scans, scans, settings)
    _check_same_scans(found, scans, workspace)
    ingest(scans, workspace, settings, found=found, announce=announce)
    if _discovers(settings):
        embed(workspace, settings, announce=announce)
        discover(workspace, settings, announce)
    else:
        crop(workspace, settings, announce)
    pretrain(workspace, settings, name, announce=announce)
    starts = [RANDOM, name]
    if sweeps:
        sweep(workspace, settings, name, announce=announce)
        best = load_settings(str(workspace.sweep(name) / "best.yaml"))
        best_name = f"{name}-best"
        pretrain(workspace, best, best_name, announce=announce)
        starts.append(best_name)
    if description is not None:
        finetune(description, workspace, settings, starts, name, announce=announce)
    page = report(workspace, settings)
    say("run", f"everything is in {workspace.root}, {watch.seconds:.1f} s; open {page}")
    return page


def _discovers(settings: Settings) -> bool:
    return pretext_of(settings.pretraining).store == PATTERNS


def _readable(target: Path, settings: Settings) -> Description:
    """A target's description, whose files are there; nothing is decoded."""
    description = read_description(target)
    read_target(description, settings.archive.subject_pattern)
    return description


def _check_sweep(settings: Settings) -> None:
    if not _discovers(settings):
        raise SettingsError(
            f"--sweep: pretraining.pretext={settings.pretraining.pretext} learns from random crops, and a sweep's "
            "points share discovered patterns: leave --sweep out, or choose a pretext task that learns from patterns"
        )
    if settings.sweep.target is not None and settings.sweep.objective == "target":
        _readable(Path(settings.sweep.target), settings)


def _check_same_scans(found: Survey, scans: Path, workspace: Workspace) -> None:
    """Refuse other scans for a workspace in which stages were built on its archive, before the archive is touched."""
    archive = ARCHIVE.read(workspace.archive)
    built = [made.name for made in made_from(ARCHIVE) if (workspace.root / made.name).exists()]
    if archive is not None and built and archive.listing != found.listing:
        raise WorkspaceError(
            f"the scans in {scans} are not those that {workspace.root} was made from: choose another workspace, or, to "
            f"make everything after the archive anew, remove {', '.join(built)} from it first"
        )


def check_settings(found: Sequence[Scan], scans: Path, settings: Settings) -> None:
    """Compare settings with the scans' headers. Raises SettingsError naming the key and the remedy."""
    check_pretext(settings.pretraining, settings.discovery)
    subjects = {subject_of(scan, settings.archive.subject_pattern) for scan in found}
    held_out = num_held_out(len(subjects), settings.validation_fraction)
    share = f"validation_fraction={settings.validation_fraction:g} of them held out"
    where = f"in {scans} ({len(subjects)} subjects, {share})"
    if _discovers(settings):
        check_counts(len(subjects) - held_out, held_out, where, settings.discovery)
    discovery = settings.discovery
    every = _sizes_mm(found, scans, settings)
    sizes = {source: size for source, size in every.items() if len(size) == settings.ndim}
    if every and not sizes:
        raise SettingsError(
            f"discovery.cube_shape asks for {settings.ndim}D, and of the {len(every)} scans that were looked at in "
            f"{scans} none is: choose a preset of their dimensions (--preset), or a folder of {settings.ndim}D scans"
        )
    reach = np.array(largest_extent(discovery.scales))
    roomy = {source: size for source, size in sizes.items() if (size >= reach - 1e-6).all()}
    if sizes and not roomy:
        source, size = max(sizes.items(), key=lambda item: float(np.prod(item[1])))
        raise SettingsError(
            f"discovery.scales: the largest crop spans {sides(reach)} mm and no scan is that large (the largest, "
            f"{name_for_log(source)}, is {sides(size)} mm): lower extent_mm"
        )
    if roomy and _discovers(settings):
        _check_room(*min(roomy.items(), key=lambda item: float(np.prod(item[1]))), reach, settings)


def _sizes_mm(found: Sequence[Scan], scans: Path, settings: Settings) -> dict[str, Any]:
    """Physical sizes in mm of scans by source; of one of several volumes that of one with the wanted dimensions."""
    step = math.ceil(len(found) / MAX_HEADERS)
    sizes = {}
    for scan in found[::step]:
        try:
            geometry = read_scan_geometry([scans / file.path for file in scan.files], settings.archive.fourth_axis)
        except (ScanError, OSError, MemoryError):
            continue  # ingest records it as a failure
        for shape, spacing in sorted(geometry, key=lambda volume: len(volume[0]) == settings.ndim):
            sizes[scan.source] = np.array(shape) * np.array(spacing)
    return sizes


def _check_room(source: str, size: Any, reach: Any, settings: Settings) -> None:
    """Refuse more coordinates than balls of their least distance can be packed where a crop's centre may lie."""
    distance, count = settings.discovery.min_distance_mm, settings.discovery.num_coordinates
    if distance == 0:
        return
    room = np.prod(size - reach + distance)
    ball = math.pi * distance**2 / 4 if settings.ndim == 2 else math.pi * distance**3 / 6
    most = max(1, math.floor(room / ball))
    if count > most:
        raise SettingsError(
            f"discovery.num_coordinates={count} does not fit in the smallest scan ({name_for_log(source)}, "
            f"{sides(size)} mm): at most {most} places discovery.min_distance_mm={distance:g} apart leave room for "
            f"crops of {sides(reach)} mm; lower one of the two, or the scales' extent_mm"
        )
