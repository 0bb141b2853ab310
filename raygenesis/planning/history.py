"""What the stages of a workspace took, against what the shipped rates say that they take."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from raygenesis.archive.work import archive_size, ingest_work
from raygenesis.cluster.work import ArchiveSize, Work
from raygenesis.discovery.work import autoencoder_work, discover_work, embed_work
from raygenesis.errors import RaygenesisError
from raygenesis.planning.estimate import Factor, estimate
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.work import pretrain_work, store_size
from raygenesis.settings import PriceSettings, Settings, adopt, merge, settings_from, settings_of_run
from raygenesis.text.amounts import MIB
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace.artifacts import ARCHIVE, AUTOENCODER, CROPS, EMBEDDINGS, INDEX, PATTERNS, RUNS
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import Manifest, RunManifest, StoreManifest
from raygenesis.workspace.workspace import Workspace

LEAST_S = 5.0  # of work, at the shipped rates, from which a rate is learnt: of less, starting is most
ENDLESS = 1e12  # MiB/s: a measured time holds what reading took


def factors_of(workspace: Workspace, settings: Settings) -> dict[str, Factor]:
    """By stage, of what the workspace's last calls did.

    A stage that did next to nothing, or whose manifest does not say on what it ran, or is of another version, has none.
    """
    scans = archive_size(workspace)
    if scans is None:
        return {}
    factors = {}
    for stage, done in FINISHED.items():
        with suppress(RaygenesisError, KeyError, TypeError):
            factor = _factor(stage, done(workspace, settings, scans))
            if factor is not None:
                factors[stage] = factor
    if "pretrain" in factors:  # the same network
        factors |= dict.fromkeys(("sweep", "finetune"), replace(factors["pretrain"], stored=1.0))
    return factors


def as_made(workspace: Workspace, settings: Settings) -> Settings:
    """The settings, with what the workspace's artifacts were made with, but for prices and keys that were given."""
    configs = [workspace.run(name) for name in workspace.names(RUNS)]
    runs = [folder for folder in configs if (folder / "config.yaml").is_file()]
    run = min(runs, key=lambda folder: folder.name != "default", default=None)
    stages = (ARCHIVE, AUTOENCODER, EMBEDDINGS, INDEX, PATTERNS, CROPS)
    with suppress(RaygenesisError):  # of another version
        whole = settings_of_run(run) if run else None
        trees = [whole.model_dump(mode="json", exclude={"prices"})] if whole else []
        made = (artifact.read(workspace.folder(artifact)) for artifact in stages)
        return adopt(settings, merge(*trees, *(each.settings for each in made if each is not None)))
    return settings


class Finished(NamedTuple):
    """A finished stage: its manifest, the work of its last call, and the seconds that took."""

    manifest: Manifest
    work: Work
    seconds: float


def _factor(stage: str, done: Finished | None) -> Factor | None:
    if done is None or done.manifest.hardware is None:
        return None
    hardware, work = done.manifest.hardware, done.work
    variable = estimate(work, hardware, PriceSettings(), {}, ENDLESS).seconds - work.start_s
    if not hardware.num_cores or variable < LEAST_S or done.seconds <= work.start_s:
        return None
    stored = done.manifest.bytes / MIB / work.stored_mib if work.stored_mib else 1.0
    return Factor((done.seconds - work.start_s) / variable, stored, f"this workspace, {hardware.amount}")


def _ingested(workspace: Workspace, settings: Settings, scans: ArchiveSize) -> Finished | None:
    made = ARCHIVE.read(workspace.archive)
    if made is None:
        return None
    taken_in = round(made.counts.volumes * (1 - made.counts.known / max(made.counts.scans, 1)))
    work = ingest_work(replace(scans, num_scans=taken_in))
    return Finished(made, replace(work, stored_mib=ingest_work(scans).stored_mib), made.seconds)


def _trained(workspace: Workspace, settings: Settings, scans: ArchiveSize) -> Finished | None:
    made = AUTOENCODER.read(workspace.autoencoder)
    if made is None:
        return None
    seen = replace(scans, num_scans=made.counts.training + made.counts.validation)
    then = _settings_then(settings, made)
    work = autoencoder_work(seen, then.autoencoder, then.validation_fraction, made.counts.epochs)
    return Finished(made, work, max(made.seconds, _epoch_seconds(workspace.autoencoder)))


def _embedded(workspace: Workspace, settings: Settings, scans: ArchiveSize) -> Finished | None:
    made = EMBEDDINGS.read(workspace.embeddings)
    if made is None:
        return None
    then = _settings_then(settings, made)
    work = embed_work(replace(scans, num_scans=made.counts.new), then.embedding, then.autoencoder)
    return Finished(made, work, made.seconds)


def _discovered(workspace: Workspace, settings: Settings, scans: ArchiveSize) -> Finished | None:
    return _stored(PATTERNS.read(workspace.patterns), settings, "discover")


def _cropped(workspace: Workspace, settings: Settings, scans: ArchiveSize) -> Finished | None:
    return _stored(CROPS.read(workspace.crops), settings, "crop")


def _stored(made: StoreManifest | None, settings: Settings, stage: str) -> Finished | None:
    if made is None:
        return None
    work = discover_work(_settings_then(settings, made).discovery, made.counts.patterns, stage)
    return Finished(made, work, made.seconds)


def _pretrained(workspace: Workspace, settings: Settings, scans: ArchiveSize) -> Finished | None:
    artifact = pretext_of(settings.pretraining).store
    store = artifact.read(workspace.folder(artifact))
    newest = _newest_run(workspace, settings.pretraining.pretext)
    if store is None or newest is None:
        return None
    made, folder = newest
    then = _settings_then(_settings_then(settings, store), made)
    work = pretrain_work(then, store_size(store.counts), made.counts.epochs, made.counts.patterns)
    return Finished(made, work, max(made.seconds, _epoch_seconds(folder)))


FINISHED = {
    "ingest": _ingested, "auto-encoder": _trained, "embed": _embedded, "discover": _discovered, "crop": _cropped,
    "pretrain": _pretrained,
}  # fmt: skip


def _newest_run(workspace: Workspace, pretext: str) -> tuple[RunManifest, Place] | None:
    """The run of a pretext task that ended last, and its folder."""
    folders = [workspace.run(name) for name in workspace.names(RUNS)]
    found = [(made, folder) for folder in folders if (made := RUNS.read(folder)) is not None]
    runs = [run for run in found if run[0].settings["pretraining"]["pretext"] == pretext]
    return max(runs, key=lambda run: run[0].finished, default=None)


def _settings_then(settings: Settings, made: Manifest) -> Settings:
    """The settings, with those that an artifact was made with."""
    tree = settings.model_dump(mode="json")
    for section, values in made.settings.items():
        if isinstance(values, dict) and isinstance(tree.get(section), dict):
            tree[section] |= values
    return settings_from(tree)


def _epoch_seconds(folder: Place) -> float:
    """Of all epochs: a manifest has the last call's seconds alone."""
    return sum(row.get("seconds") or 0.0 for row in read_metrics(folder))
