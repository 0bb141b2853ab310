"""How long the stages of a workspace took, compared with the shipped rates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from raygenesis.archive.work import archive_size, ingest_work_done
from raygenesis.cluster.work import ArchiveSize, Work
from raygenesis.discovery.work import autoencoder_work_done, discover_work, embed_work, neighbours_work
from raygenesis.errors import RaygenesisError
from raygenesis.planning.estimate import Factor, estimate
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.work import pretrain_work, store_size
from raygenesis.settings import PriceSettings, Settings, adopt, merge, settings_from, settings_of_run
from raygenesis.text.amounts import MIB
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace.artifacts import (
    ARCHIVE,
    AUTOENCODER,
    CROPS,
    EMBEDDINGS,
    INDEX,
    NEIGHBOURS,
    PATTERNS,
    RUNS,
    SWEEPS,
    TRANSFER,
    Artifact,
)
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import Manifest, RunManifest
from raygenesis.workspace.workspace import Workspace

LEAST_S = 5.0  # of work, at the shipped rates, from which a rate is learnt: of less, starting is most
ENDLESS = 1e12  # MiB/s: a measured time holds what reading took


def factors_of(workspace: Workspace, settings: Settings) -> dict[str, Factor]:
    """Compare the last call of each stage of a workspace with the shipped rates; returns factors by stage.

    A stage that did next to nothing, or whose manifest does not say on what it ran, or is of another version, has none.
    """
    archive = ARCHIVE.read(workspace.archive)
    if archive is None:
        return {}
    scans = archive_size(archive)
    factors = {}
    for artifact in (*WORK_DONE, RUNS):
        with suppress(RaygenesisError, KeyError, TypeError):
            finished = _finished(artifact, workspace, settings, scans)
            if finished is not None and (factor := _factor(*finished)) is not None:
                factors[finished[1].stage] = factor
    if RUNS.verb in factors:  # the same network
        factors |= dict.fromkeys((SWEEPS.verb, TRANSFER.verb), replace(factors[RUNS.verb], stored=1.0))
    return factors


def as_made(workspace: Workspace, settings: Settings) -> Settings:
    """The settings that the workspace's artifacts were made with, but for prices and for keys that were given."""
    runs = [folder for folder in workspace.folders(RUNS) if (folder / "config.yaml").is_file()]
    run = min(runs, key=lambda folder: folder.name != "default", default=None)
    stages = (ARCHIVE, AUTOENCODER, EMBEDDINGS, INDEX, NEIGHBOURS, PATTERNS, CROPS)
    with suppress(RaygenesisError):  # of another version
        whole = settings_of_run(run) if run else None
        trees = [whole.model_dump(mode="json", exclude={"prices"})] if whole else []
        made = (artifact.read(workspace.folder(artifact)) for artifact in stages)
        return adopt(settings, merge(*trees, *(each.settings for each in made if each is not None)))
    return settings


def _factor(manifest: Manifest, work: Work, seconds: float) -> Factor | None:
    """Of a finished stage, of the work of its last call, and of the seconds that this took."""
    hardware = manifest.hardware
    if hardware is None:
        return None
    variable = estimate(work, hardware, PriceSettings(), {}, ENDLESS).seconds - work.start_s
    if not hardware.num_cores or variable < LEAST_S or seconds <= work.start_s:
        return None
    stored = manifest.bytes / MIB / work.stored_mib if work.stored_mib else 1.0
    return Factor((seconds - work.start_s) / variable, stored, f"this workspace, {hardware.amount}")


def _finished(
    artifact: Artifact[Any], workspace: Workspace, settings: Settings, scans: ArchiveSize
) -> tuple[Manifest, Work, float] | None:
    """A finished artifact's manifest, the work of its last call, and the seconds that this took."""
    folder = _newest_run(workspace, settings.pretraining.pretext) if artifact is RUNS else workspace.folder(artifact)
    manifest = None if folder is None else artifact.read(folder)
    if folder is None or manifest is None:
        return None
    if isinstance(manifest, RunManifest):
        store_made = pretext_of(settings.pretraining).store
        store = store_made.read(workspace.folder(store_made))
        if store is None:
            return None
        then, counts = _settings_then(_settings_then(settings, store), manifest), manifest.counts
        work = pretrain_work(then.pretraining, then.discovery, store_size(store.counts), counts.epochs, counts.patterns)
    else:
        work = WORK_DONE[artifact](manifest, scans, _settings_then(settings, manifest))
    # A manifest of what is trained has the last call's seconds alone; its epochs have all.
    return manifest, work, max(manifest.seconds, sum(row.get("seconds") or 0.0 for row in read_metrics(folder)))


# The work that a finished artifact was, of its manifest, the archive's size, and the settings that it was made with.
WORK_DONE: dict[Artifact[Any], Callable[[Any, ArchiveSize, Settings], Work]] = {
    ARCHIVE: lambda archive, scans, settings: ingest_work_done(archive),
    AUTOENCODER: lambda made, scans, settings: autoencoder_work_done(
        made.counts, scans, settings.autoencoder, settings.validation_fraction
    ),
    EMBEDDINGS: lambda made, scans, settings: embed_work(
        replace(scans, num_scans=made.counts.new), settings.embedding, settings.autoencoder
    ),
    NEIGHBOURS: lambda made, scans, settings: neighbours_work(
        replace(scans, num_scans=made.counts.added), settings.index, settings.autoencoder.latent_size
    ),
    PATTERNS: lambda store, scans, settings: discover_work(settings.discovery, store.counts.patterns),
    CROPS: lambda store, scans, settings: discover_work(settings.discovery, store.counts.patterns, CROPS.verb),
}


def _newest_run(workspace: Workspace, pretext: str) -> Place | None:
    """The folder of the run of a pretext task that ended last."""
    folders = workspace.folders(RUNS)
    found = [(made.finished, folder, made) for folder in folders if (made := RUNS.read(folder)) is not None]
    runs = [run for run in found if run[2].settings["pretraining"]["pretext"] == pretext]
    return max(runs, key=lambda run: run[0], default=(None, None))[1]


def _settings_then(settings: Settings, made: Manifest) -> Settings:
    """The settings, with those that an artifact was made with."""
    tree = settings.model_dump(mode="json")
    for section, values in made.settings.items():
        if isinstance(values, dict) and isinstance(tree.get(section), dict):
            tree[section] |= values
    return settings_from(tree)
