"""Pretrain: a store of cubes → Ray Data → Ray Train → an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import ray
import ray.data

from raygenesis.cluster import capacity, joining
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.errors import SettingsError
from raygenesis.networks.network import PretextNetwork
from raygenesis.networks.weights.loading import export, num_parameters
from raygenesis.patterns.reader import TRAINING_COLUMNS, predicate, read_patterns, store_manifest
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.patterns.source import PatternSource
from raygenesis.pretraining.pretexts import CROPS, PATTERNS, pretext_of
from raygenesis.pretraining.probe import anatomy_retrieval, mean_image_error
from raygenesis.pretraining.task import PretextTask
from raygenesis.pretraining.work import pretrain_work, store_size
from raygenesis.settings import Settings, adopt, as_yaml, flatten, settings_from
from raygenesis.text.amounts import size
from raygenesis.training.experiment import best_of
from raygenesis.training.feeding import Samples
from raygenesis.training.file_samples import StoredPatterns
from raygenesis.training.fit import Feed, Resources, fit_with_ray, samples_from
from raygenesis.training.trackers import check_trackers
from raygenesis.workspace.artifacts import CROPS as CROP_STORE
from raygenesis.workspace.artifacts import PATTERNS as PATTERN_STORE
from raygenesis.workspace.artifacts import RUNS
from raygenesis.workspace.files import Place, publish
from raygenesis.workspace.manifest import MANIFEST, STARTED, RunCounts, RunManifest, Speed, StoreManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# Settings that say how a run is executed: what is learnt does not depend on them.
EXECUTION = {"num_workers", "use_gpu", "memory_gib", "checkpoint_seconds", "trackers"}
# Settings that say how long it lasts.
LASTING = frozenset({"pretraining.num_joint_epochs", "pretraining.patience"})


def pretrain(
    workspace: Workspace, settings: Settings, name: str = "default", extend: bool = False,
    announce: Announce = unannounced,
) -> RunManifest:  # fmt: skip
    """Train a pretext task on its store and export the network to `runs/<name>/`; returns the manifest.

    An interrupted run goes on at the batch after its newest checkpoint. Other settings than it began with are refused,
    but for those that say how it is run (EXECUTION) and, to extend it, how long it lasts (LASTING).
    """
    store = store_of(workspace, settings)
    patterns = store_manifest(store)
    settings = as_stored(settings, patterns)
    folder = workspace.run(name)
    chosen = settings.model_dump(mode="json", include={"pretraining", "seed"}, exclude={"pretraining": EXECUTION})
    if extend:
        _check_extension(folder, settings)
    stage = Stage(RUNS, folder, chosen, {store.name: patterns.fingerprint}, LASTING, extend)
    if (made := stage.finished()) is not None:
        say("pretrain", f"nothing to do: the encoder is in {folder}")
        return made
    announce([pretrain_work(settings, store_size(patterns.counts))])
    task = pretext_task(settings, patterns)
    watch = Stopwatch()
    joining.connect()
    _check_resources(settings)
    with stage.claimed():
        publish(folder / "config.yaml", lambda aside: aside.write_text(as_yaml(settings)))
        feeds, where = pattern_feeds(store, settings)
        samples = {key: samples_from(feed, task) for key, feed in feeds.items()}
        num_patterns = len(samples["train"])
        classes = f"{task.puzzle.num_classes} classes; " if task.puzzle else ""
        fewest, most = settings.pretraining.fewest_workers, settings.pretraining.most_workers
        told = str(most) if fewest == most else f"{fewest} to {most}"
        say(
            "pretrain",
            f"{settings.pretraining.pretext}: {num_patterns} {store.name}, {len(samples['validation'])} held out, "
            f"{where}; {classes}{told} worker(s), {num_parameters(task.build()):,} parameters",
        )
        state, num_epochs = fit_with_ray(task, feeds, folder, _resources(settings))
        if len(state["history"]) < task.num_epochs:
            say(
                "pretrain",
                f"ended after {len(state['history'])} of {task.num_epochs} epochs: the held-out loss has not "
                f"fallen for {settings.pretraining.patience} (pretraining.patience)",
            )
        model = task.build()
        model.load_state_dict(state["best"])
        reached = _reached(task, state, samples, _retrieval(workspace, task, model))
        known = {key: value for key, value in vars(reached).items() if value is not None and key != "epoch"}
        card = {"pretext": settings.pretraining.pretext, "best epoch": reached.epoch + 1}
        exported = export(model, folder, {**card, **known, store.name: num_patterns})
        counts = RunCounts(
            epochs=len(state["history"]), patterns=num_patterns, classes=task.puzzle.num_classes if task.puzzle else 0
        )
        manifest = RunManifest(
            counts=counts, seconds=watch.seconds, architecture=asdict(task.architecture), store=store.name,
            **vars(reached), warnings=tuple(_warnings(task, state, reached)), speed=_speed(state["history"]),
        )  # fmt: skip
        manifest = stage.finish(manifest)
        _summarise(manifest, num_epochs, exported)
        return manifest


def store_of(workspace: Workspace, settings: Settings) -> Place:
    """The store that the pretext task learns from: discovered patterns, or random crops."""
    return workspace.patterns if pretext_of(settings.pretraining).crops == PATTERNS else workspace.crops


def made_store(workspace: Workspace, settings: Settings) -> StoreManifest | None:
    """The manifest of that store; None where it is yet to be made."""
    artifact = PATTERN_STORE if pretext_of(settings.pretraining).crops == PATTERNS else CROP_STORE
    return artifact.read(workspace.folder(artifact))


def as_stored(settings: Settings, patterns: StoreManifest) -> Settings:
    """The settings, with what decided the cubes of a store, whose manifest is given, as they were made.

    A target is read as its run's settings say. Raises SettingsError if other values were given on the command line.
    """
    shape = patterns.cube_shape
    if len(shape) != settings.ndim:
        raise SettingsError(
            f"the store holds cubes of {len(shape)} sides, {list(shape)}, and discovery.cube_shape="
            f"{list(settings.discovery.cube_shape)} has {settings.ndim}: give the preset that the store was made with"
        )
    made_with = {key: patterns.settings[key] for key in ("discovery", "intensity", "validation_fraction")}
    taken, stored = adopt(settings, made_with), adopt(settings_from(settings.model_dump(mode="json")), made_with)
    ours, theirs = (flatten(each.model_dump(mode="json", include=set(made_with))) for each in (taken, stored))
    for key, value in theirs.items():
        if ours[key] != value:  # given on the command line
            raise SettingsError(
                f"{key}={json.dumps(ours[key])}, but the cubes in the store were made with {json.dumps(value)}: leave "
                "it out, or make the store again"
            )
    return taken


def pretext_task(settings: Settings, patterns: StoreManifest) -> PretextTask:
    """The pretext task on a store, whose manifest is given."""
    counts, shape = patterns.counts, patterns.cube_shape
    for key in ("num_neighbours", "num_coordinates"):
        asked, held = getattr(settings.pretraining, key), counts.of(key)
        if asked is not None and asked > held:
            again = f"discover again with discovery.{key}={asked}"
            if pretext_of(settings.pretraining).crops == CROPS:
                again = "crop more scans" if key == "num_neighbours" else f"crop again with discovery.num_crops={asked}"
            raise SettingsError(f"pretraining.{key}={asked} is more than the {held} in the store: lower it, or {again}")
    return PretextTask(
        settings.pretraining,
        settings.seed,
        tuple(shape),
        counts.references,
        settings.pretraining.num_coordinates or counts.coordinates,
    )


def pattern_feeds(folder: Place, settings: Settings) -> tuple[dict[str, Feed], str]:
    """The selected training and held-out patterns, encoded, and where they are.

    They are in Ray's object store where `memory_gib` allows it, and otherwise stay in the files.
    """
    pretraining = settings.pretraining
    selected = (pretraining.num_neighbours, pretraining.num_coordinates)
    splits = {"train": TRAINING, "validation": VALIDATION}
    sources = {key: PatternSource(folder, where=predicate(split, *selected)) for key, split in splits.items()}
    num_bytes = sum(source.estimate_inmemory_data_size() for source in sources.values())
    if num_bytes > pretraining.memory_gib * 2**30:
        return (
            {key: StoredPatterns(folder, split, *selected) for key, split in splits.items()},
            f"{size(num_bytes)} read from files",
        )
    return {
        key: ray.data.read_datasource(source, override_num_blocks=source.num_parts).materialize()
        for key, source in sources.items()
    }, f"{size(num_bytes)} in memory"


def check_pretext(settings: Settings, store: StoreManifest | None = None) -> None:
    """Raise SettingsError if there is no such pretext task, it does not fit its store, or a tracker is not installed.

    store: its manifest; None where the store is yet to be made as the settings say.
    """
    check_trackers(settings.pretraining.trackers)
    if store is not None:
        pretext_task(settings, store)
        return
    PretextTask(settings.pretraining, settings.seed, settings.discovery.cube_shape, 1, 1)
    if pretext_of(settings.pretraining).crops != PATTERNS:
        return
    for name in ("num_neighbours", "num_coordinates"):
        asked, limit = getattr(settings.pretraining, name), getattr(settings.discovery, name)
        if asked is not None and asked > limit:
            raise SettingsError(
                f"pretraining.{name}={asked} is more than the {limit} that are discovered: lower it or raise "
                f"discovery.{name}"
            )


def _check_resources(settings: Settings) -> None:
    chosen = settings.pretraining
    key = f"pretraining.num_workers={chosen.fewest_workers}" + (" with pretraining.use_gpu=true" * chosen.use_gpu)
    capacity.require(key, chosen.fewest_workers, num_gpus=float(chosen.use_gpu))


def _resources(settings: Settings) -> Resources:
    pretraining = settings.pretraining
    return Resources(
        num_workers=pretraining.num_workers,
        use_gpu=pretraining.use_gpu,
        checkpoint_seconds=pretraining.checkpoint_seconds,
        trackers=pretraining.trackers,
        config=pretraining.model_dump(mode="json") | {"seed": settings.seed},
    )


def _check_extension(folder: Place, settings: Settings) -> None:
    """Raise SettingsError if there is no run to extend, or training for longer would not be training on."""
    if not any((folder / name).is_file() for name in (MANIFEST, STARTED)):
        raise SettingsError(f"{folder} holds no run to extend: leave --extend out, or correct --name")
    if settings.pretraining.schedule == "cosine":
        raise SettingsError(
            "pretraining.schedule=cosine ends where the run ended, and cannot be extended: start another run"
        )


def _speed(history: Sequence[Mapping[str, Any]]) -> Speed:
    """Of all epochs together."""
    seconds = sum(row["seconds"] for row in history)
    return Speed(
        cubes_per_s=sum(row["cubes_per_s"] * row["seconds"] for row in history) / seconds,
        gap=sum(row["gap"] * row["seconds"] for row in history) / seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What the best epoch reached on held-out subjects, as `RunManifest` has it."""

    epoch: int
    accuracy: float | None
    chance: float | None
    restoration_mse: float | None
    identity_mse: float | None
    mean_image_mse: float | None
    embedding_variance: float
    effective_rank: float
    retrieval: float | None
    retrieval_untrained: float | None


def _reached(
    task: PretextTask, state: Mapping[str, Any], samples: Mapping[str, Samples], retrieval: Retrieval
) -> Reached:
    best = best_of(task, state["history"])
    mean_image = mean_image_error(samples["train"], samples["validation"]) if task.architecture.restores else None
    return Reached(
        epoch=best["epoch"], accuracy=best.get("val_accuracy"), chance=task.chance,
        restoration_mse=best.get("val_restoration"), identity_mse=best.get("val_identity"), mean_image_mse=mean_image,
        embedding_variance=best["val_embedding_variance"], effective_rank=best["val_effective_rank"],
        retrieval=retrieval.trained, retrieval_untrained=retrieval.untrained,
    )  # fmt: skip


def _warnings(task: PretextTask, state: Mapping[str, Any], reached: Reached) -> list[str]:
    """What went wrong, in sentences; the mean image is a better answer than those that every epoch is compared with."""
    found = task.warnings(state["history"], at_end=True)
    error, mean_image = reached.restoration_mse, reached.mean_image_mse
    if error is not None and mean_image is not None and task.restores(task.num_epochs - 1) and error >= mean_image:
        found.setdefault(
            "restoration",
            f"little is learnt from restoration: the held-out error is {error:.4f} and always answering with the mean "
            f"training cube gives {mean_image:.4f}; train longer",
        )
    return list(found.values())


class Retrieval(NamedTuple):
    """Anatomy retrieval by the best epoch's weights, and by those that training began with."""

    trained: float | None = None
    untrained: float | None = None


def _retrieval(workspace: Workspace, task: PretextTask, model: PretextNetwork) -> Retrieval:
    """On discovered held-out patterns, so that all pretext tasks can be compared; None without patterns."""
    patterns = PATTERN_STORE.read(workspace.patterns)
    if patterns is None or patterns.cube_shape != task.sample_shape:
        return Retrieval()
    where = predicate(VALIDATION, None, task.settings.num_coordinates if task.pretext.crops == PATTERNS else None)
    table = read_patterns(workspace.patterns, TRAINING_COLUMNS, where)
    samples = Samples([table], task.sample_key, task.sample_shape)
    return Retrieval(anatomy_retrieval(model.encoder, samples), anatomy_retrieval(task.build().encoder, samples))


def _summarise(manifest: RunManifest, num_epochs: int, exported: Place) -> None:
    told = []
    if manifest.accuracy is not None:
        told.append(f"accuracy {manifest.accuracy:.3f} (chance {manifest.chance:.3f})")
    if manifest.restoration_mse is not None:
        told.append(
            f"restoration error {manifest.restoration_mse:.5f} (identity {manifest.identity_mse:.5f}, mean image "
            f"{manifest.mean_image_mse:.5f})"
        )
    if manifest.retrieval is not None:
        told.append(f"anatomy retrieval {manifest.retrieval:.3f} (untrained {manifest.retrieval_untrained:.3f})")
    told.append(f"effective rank of the embedding {manifest.effective_rank:.1f}")
    say("pretrain", f"held-out subjects: {', '.join(told)}")
    for sentence in manifest.warnings:
        say("pretrain", f"warning: {sentence}")
    say(
        "pretrain",
        f"{num_epochs} epochs, {size(manifest.bytes)}, {manifest.seconds:.1f} s → {exported}",
    )
