"""The main job: every stage from scans to report, each skipped when its artifact is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raygenesis.archive.ingest import check_any, ingest
from raygenesis.archive.intake.find import find
from raygenesis.archive.intake.survey import Survey
from raygenesis.cluster.job import recorded
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, Work, unannounced
from raygenesis.discovery.crop import crop
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.discovery.find_neighbours import find_neighbours
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.planning.announce import announce as announce_work
from raygenesis.planning.checks import check_settings
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.pretrain import pretrain
from raygenesis.report.report import report
from raygenesis.settings import PretrainingSettings, Settings, SweepSettings, load_settings
from raygenesis.sweeps.sweep import sweep
from raygenesis.transfer.description import Description, read_description
from raygenesis.transfer.finetune import FinetuneRequest, finetune
from raygenesis.transfer.initialisations import RANDOM
from raygenesis.transfer.resolved import listed_target
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    AUTOENCODER,
    COMPONENTS,
    CROPS,
    EMBEDDINGS,
    INDEX,
    NEIGHBOURS,
    PATTERNS,
    RUNS,
)
from raygenesis.workspace.files import Place
from raygenesis.workspace.workspace import Workspace


@contextmanager
def job(verb: str, workspace: Workspace, settings: Settings) -> Iterator[Announce]:
    """Run a verb: keep the job's record, and yield what the verb calls to announce its work before it begins."""

    def announce_here(left: Sequence[Work]) -> None:
        announce_work(left, workspace, settings)

    with recorded(verb, workspace):
        yield announce_here


@dataclass(frozen=True)
class Extras:
    """What the main job does beside a pretraining.

    sweeps: then a sweep, and a pretraining with its best settings, `<name>-best`. target: a file that describes a
    target task, which is learnt at the end from random weights and from each pretraining.
    """

    sweeps: bool = False
    target: Path | None = None


def run(
    scans: Path, workspace: Workspace, settings: Settings, name: str = "default", extras: Extras = Extras(),
    announce: Announce = unannounced,
) -> Place:  # fmt: skip
    """ingest → auto-encoder → embed → neighbours → discover → pretrain → report; returns the report's path.

    Pretext tasks that learn from random crops need no discovery: ingest → crop → pretrain → report. Raises a
    RaygenesisError before any work starts if the settings cannot fit the scans, or a target is at fault.
    """
    watch = Stopwatch()
    workspace.run(name)  # a name that is no name is refused before any work
    subject_pattern, pretraining = settings.archive.subject_pattern, settings.pretraining
    description = None if extras.target is None else _readable(extras.target, subject_pattern)
    if extras.sweeps:
        _check_sweep(settings.sweep, pretraining, subject_pattern)
    found = find(scans, workspace)
    check_any(scans, found)
    fraction = settings.validation_fraction
    check_settings(found.scans, scans, settings.archive, settings.discovery, pretraining, fraction)
    _check_same_scans(found, scans, workspace)
    ingest(scans, workspace, settings, found=found, announce=announce)
    if _discovers(pretraining):
        embed(workspace, settings, announce=announce)
        find_neighbours(workspace, settings, announce)
        discover(workspace, settings, announce)
    else:
        crop(workspace, settings, announce)
    pretrain(workspace, settings, name, announce=announce)
    sources = [RANDOM, name]
    if extras.sweeps:
        sweep(workspace, settings, name, announce=announce)
        best = load_settings(str(workspace.sweep(name) / "best.yaml"))
        best_name = f"{name}-best"
        pretrain(workspace, best, best_name, announce=announce)
        sources.append(best_name)
    if description is not None:
        finetune(description, workspace, settings, FinetuneRequest(name, tuple(sources)), announce)
    page = report(workspace, settings)
    say("run", f"everything is in {workspace.root}, {watch.seconds:.1f} s; open {page}")
    return page


def _discovers(settings: PretrainingSettings) -> bool:
    return pretext_of(settings).store == PATTERNS


def _readable(target: Path, subject_pattern: str | None) -> Description:
    """A target's description, whose files are there; nothing is decoded."""
    description = read_description(target)
    listed_target(description, subject_pattern)
    return description


def _check_sweep(settings: SweepSettings, pretraining: PretrainingSettings, subject_pattern: str | None) -> None:
    if not _discovers(pretraining):
        raise SettingsError(
            f"--sweep: pretraining.pretext={pretraining.pretext} learns from random crops, and a sweep's "
            "points share discovered patterns: leave --sweep out, or choose a pretext task that learns from patterns"
        )
    if settings.target is not None and settings.objective == "target":
        _readable(Path(settings.target), subject_pattern)


def _check_same_scans(found: Survey, scans: Path, workspace: Workspace) -> None:
    """Refuse other scans for a workspace in which stages were built on its archive, before the archive is touched."""
    archive = ARCHIVE.read(workspace.archive)
    # What is made from runs and stores goes with them.
    stages = (AUTOENCODER, COMPONENTS, EMBEDDINGS, INDEX, NEIGHBOURS, PATTERNS, CROPS, RUNS)
    built = [stage.name for stage in stages if (workspace.root / stage.name).exists()]
    if archive is not None and built and archive.listing != found.listing:
        raise WorkspaceError(
            f"the scans in {scans} are not those that {workspace.root} was made from: choose another workspace, or, to "
            f"make everything after the archive again, remove {', '.join(built)} from it first"
        )
