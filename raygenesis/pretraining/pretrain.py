"""Pretrain: a store of cubes → Ray Data → Ray Train → an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from raygenesis.cluster import capacity, joining
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.networks.network import num_parameters
from raygenesis.networks.weights.native import save_network
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.closing import ClosingData, ClosingMeasures, measure
from raygenesis.pretraining.fitting import check_memory
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.stores import pretext_task, stored_patterns, with_store_settings
from raygenesis.pretraining.task import PretextTask
from raygenesis.pretraining.work import pretrain_work, store_size
from raygenesis.settings import EXECUTION_SETTINGS, PretrainingSettings, Settings, as_yaml
from raygenesis.text.amounts import size
from raygenesis.training.checkpoints import newest_step
from raygenesis.training.chosen_precision import with_precision
from raygenesis.training.experiment import best_of
from raygenesis.training.file_samples import StoredPatterns, StoredSamples
from raygenesis.training.fit import Resources, fit_with_ray
from raygenesis.training.metrics import read_metrics
from raygenesis.training.recorder import CHECKPOINTS
from raygenesis.training.records import EpochRow
from raygenesis.workspace.artifacts import PATTERNS, RUNS
from raygenesis.workspace.files import Place, publish
from raygenesis.workspace.manifest import RunCounts, RunManifest, Speed, StoreManifest
from raygenesis.workspace.manifest_files import MANIFEST, STARTED
from raygenesis.workspace.stage import Stage, settings_of
from raygenesis.workspace.workspace import Workspace

# Settings that say how long it lasts.
LASTING = frozenset({"pretraining.num_joint_epochs", "pretraining.patience"})
# Figures of the best epoch that the model card lists, where the task has them.
CARD_FIGURES = (
    "accuracy", "chance", "restoration_mse", "identity_mse", "mean_image_mse", "contrast", "contrast_chance",
    "cross_restoration_mse", "separation", "embedding_variance", "effective_rank", "retrieval", "retrieval_untrained",
)  # fmt: skip


def pretrain(
    workspace: Workspace, settings: Settings, name: str = "default", extend: bool = False,
    announce: Announce = unannounced,
) -> RunManifest:  # fmt: skip
    """Train a pretext task on its store and write the network to `runs/<name>/`; returns the manifest.

    An interrupted run goes on at the batch after its newest checkpoint. Settings other than those it began with are
    refused, except for those that say how it is executed (EXECUTION_SETTINGS) and, to extend it, how long it lasts
    (LASTING).
    """
    artifact = pretext_of(settings.pretraining).store
    store = workspace.folder(artifact)
    store_manifest: StoreManifest = artifact.require(store)
    folder = workspace.run(name)
    device = "cuda" if settings.pretraining.use_gpu else "cpu"
    settings = with_precision(
        with_store_settings(settings, store_manifest), "pretraining", device, settings_of(RUNS, folder)
    )
    pretraining = settings.pretraining
    deciding = settings.model_dump(
        mode="json", include={"pretraining", "seed"}, exclude={"pretraining": EXECUTION_SETTINGS}
    )
    if extend:
        _check_extension(folder, pretraining)
    stage = Stage(RUNS, folder, deciding, {artifact.name: store_manifest.fingerprint}, LASTING, extend)
    if (finished := stage.finished()) is not None:
        say("pretrain", f"nothing to do: the encoder is in {folder}")
        return finished
    num_done = _num_epochs_done(folder)
    announce([pretrain_work(pretraining, settings.discovery, store_size(store_manifest.counts), num_done=num_done)])
    task = pretext_task(pretraining, settings.pretraining_seed, store_manifest)
    watch = Stopwatch()
    joining.connect()
    _check_resources(pretraining)
    if pretraining.use_gpu:
        check_memory(task, has_begun=newest_step(folder / CHECKPOINTS) is not None)
    with stage.claimed():
        publish(folder / "config.yaml", lambda aside: aside.write_text(as_yaml(settings)))
        splits = {"train": TRAINING, "validation": VALIDATION}
        feeds = {key: stored_patterns(store, pretraining, split) for key, split in splits.items()}
        samples = {key: feed.open(task.sample_key, task.sample_shape) for key, feed in feeds.items()}
        _say_begin(task, samples)
        state, num_epochs = fit_with_ray(task, feeds, folder, _resources(pretraining, settings.pretraining_seed))
        history = state["history"]
        if len(history) < task.num_epochs:
            say(
                "pretrain",
                f"ended after {len(history)} of {task.num_epochs} epochs: the held-out loss has not "
                f"fallen for {pretraining.patience} (pretraining.patience)",
            )
        measures = measure(task, state["best"], _closing_data(workspace, task, feeds), pretraining.use_gpu)
        manifest = _manifest(task, history, len(samples["train"]), measures)
        model = task.build()
        model.load_state_dict(state["best"])
        weights = save_network(model, folder, _card_facts(task, manifest))
        manifest = stage.finish(replace(manifest, seconds=watch.seconds))
        _say_end(manifest, num_epochs, weights)
        return manifest


def _num_epochs_done(folder: Place) -> int:
    """The epochs of a run that goes on; 0 where they cannot be read: an estimate refuses nothing."""
    try:
        return len(read_metrics(folder))
    except WorkspaceError:
        return 0


def _check_resources(settings: PretrainingSettings) -> None:
    workers = settings.fewest_workers
    key = f"pretraining.num_workers={workers}" + (" with pretraining.use_gpu=true" * settings.use_gpu)
    capacity.require(key, workers, num_gpus=float(settings.use_gpu))


def _resources(settings: PretrainingSettings, seed: int) -> Resources:
    return Resources(
        num_workers=settings.num_workers,
        use_gpu=settings.use_gpu,
        checkpoint_seconds=settings.checkpoint_seconds,
        trackers=settings.trackers,
        config=settings.model_dump(mode="json") | {"seed": seed},
    )


def _check_extension(folder: Place, settings: PretrainingSettings) -> None:
    """Raise SettingsError if there is no run to extend, or training for longer would not be training on."""
    if not any((folder / name).is_file() for name in (MANIFEST, STARTED)):
        raise SettingsError(f"{folder} holds no run to extend: leave --extend out, or correct --name")
    if settings.schedule == "cosine":
        raise SettingsError(
            "pretraining.schedule=cosine ends where the run ended, and cannot be extended: start another run"
        )
    if settings.scale_stages:
        raise SettingsError(
            "pretraining.scale_stages=true divides the epochs that there are, and cannot be extended: start another run"
        )


def _closing_data(workspace: Workspace, task: PretextTask, feeds: Mapping[str, StoredPatterns]) -> ClosingData:
    """Places are those of all discovered held-out patterns, so that all pretext tasks can be compared."""
    patterns, places = PATTERNS.read(workspace.patterns), None
    if patterns is not None and patterns.cube_shape == task.sample_shape:
        places = StoredPatterns(workspace.patterns, VALIDATION)
    return ClosingData(feeds["train"], feeds["validation"], places)


def _manifest(
    task: PretextTask, history: Sequence[EpochRow], num_patterns: int, measures: ClosingMeasures
) -> RunManifest:
    """What the best epoch reached on held-out subjects, and what went wrong."""
    best = best_of(task, history)
    counts = RunCounts(
        epochs=len(history), patterns=num_patterns, classes=task.puzzle.num_classes if task.puzzle else 0
    )
    return RunManifest(
        counts=counts, architecture=asdict(task.architecture), store=task.pretext.store.name, epoch=best["epoch"],
        accuracy=best.get("val_accuracy"), chance=task.chance, restoration_mse=best.get("val_restoration"),
        identity_mse=best.get("val_identity"), mean_image_mse=measures.mean_image_mse,
        embedding_variance=best["val_embedding_variance"], effective_rank=best["val_effective_rank"],
        retrieval=measures.retrieval, retrieval_untrained=measures.retrieval_untrained,
        contrast=best.get("train_contrast"), contrast_chance=best.get("train_contrast_chance"),
        cross_restoration_mse=best.get("train_cross_restoration"), separation=best.get("val_separation"),
        warnings=_warnings(task, history, best.get("val_restoration"), measures.mean_image_mse), speed=_speed(history),
    )  # fmt: skip


def _warnings(
    task: PretextTask, history: Sequence[EpochRow], error: float | None, mean_image_mse: float | None
) -> tuple[str, ...]:
    """What went wrong, in sentences; the mean image is a better answer than those that every epoch is compared with."""
    found = task.warnings(history, at_end=True)
    is_restored = task.restores(task.num_epochs - 1)
    if error is not None and mean_image_mse is not None and is_restored and error >= mean_image_mse:
        found.setdefault(
            "restoration",
            f"little is learnt from restoration: the held-out error is {error:.4f} and always answering with the mean "
            f"training cube gives {mean_image_mse:.4f}; train longer",
        )
    return tuple(found.values())


def _speed(history: Sequence[EpochRow]) -> Speed:
    """The speed over all epochs together."""
    seconds = sum(row["seconds"] for row in history)
    return Speed(
        cubes_per_s=sum(row["cubes_per_s"] * row["seconds"] for row in history) / seconds,
        gap=sum(row["gap"] * row["seconds"] for row in history) / seconds,
    )


def _card_facts(task: PretextTask, manifest: RunManifest) -> dict[str, object]:
    figures = {name: value for name in CARD_FIGURES if (value := getattr(manifest, name)) is not None}
    facts = {"pretext": task.settings.pretext, "best epoch": manifest.epoch + 1}
    return {**facts, **figures, manifest.store: manifest.counts.patterns}


def _say_begin(task: PretextTask, samples: Mapping[str, StoredSamples]) -> None:
    classes = f"{task.puzzle.num_classes} classes; " if task.puzzle else ""
    fewest, most = task.settings.fewest_workers, task.settings.most_workers
    workers = str(most) if fewest == most else f"{fewest} to {most}"
    num_learnt, num_held_out = len(samples["train"]), len(samples["validation"])
    num_bytes = size(sum(some.num_bytes for some in samples.values()))
    where = f"{num_bytes} kept in memory" if samples["train"].is_kept else f"{num_bytes} read from files each epoch"
    say(
        "pretrain",
        f"{task.settings.pretext}: {num_learnt} {task.pretext.store.name}, {num_held_out} held out, {where}; {classes}"
        f"{workers} worker(s), {num_parameters(task.build()):,} parameters",
    )


def _say_end(manifest: RunManifest, num_epochs: int, weights: Place) -> None:
    figures = []
    if manifest.accuracy is not None:
        figures.append(f"accuracy {manifest.accuracy:.3f} (chance {manifest.chance:.3f})")
    if manifest.restoration_mse is not None:
        figures.append(
            f"restoration error {manifest.restoration_mse:.5f} (identity {manifest.identity_mse:.5f}, mean image "
            f"{manifest.mean_image_mse:.5f})"
        )
    if manifest.separation is not None:
        figures.append(f"separation of classes {manifest.separation:.3f}")
    if manifest.retrieval is not None:
        figures.append(f"anatomy retrieval {manifest.retrieval:.3f} (untrained {manifest.retrieval_untrained:.3f})")
    figures.append(f"effective rank of the embedding {manifest.effective_rank:.1f}")
    say("pretrain", f"held-out subjects: {', '.join(figures)}")
    for sentence in manifest.warnings:
        say("pretrain", f"warning: {sentence}")
    say("pretrain", f"{num_epochs} epochs, {size(manifest.bytes)}, {manifest.seconds:.1f} s → {weights}")
