"""Pretrain: a store of cubes → Ray Data → Ray Train → an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.data

from raygenesis import cluster
from raygenesis.config import Settings
from raygenesis.errors import SettingsError
from raygenesis.feeding import Samples
from raygenesis.patterns.reader import TRAINING_COLUMNS, made_by, predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.patterns.source import PatternSource
from raygenesis.pretraining.networks import PretextNetwork
from raygenesis.pretraining.pretexts import CROPS, PATTERNS, pretext_of
from raygenesis.pretraining.probe import anatomy_retrieval, mean_image_error
from raygenesis.pretraining.task import PretextTask
from raygenesis.pretraining.weights import export, num_parameters
from raygenesis.progress import mib, say
from raygenesis.settings import as_yaml
from raygenesis.training import fit_with_ray, samples_of
from raygenesis.workspace import Stage, Stopwatch, Workspace, manifest_of, publish, read_json


def pretrain(workspace: Workspace, settings: Settings, name: str = "default") -> dict[str, Any]:
    """Train a pretext task on its store and export the network to `runs/<name>/`; returns the manifest.

    An interrupted run goes on from its newest checkpoint.
    """
    store = store_of(workspace, settings)
    patterns = manifest_of(store, made_by(store))
    folder = workspace.run(name)
    chosen = settings.model_dump(mode="json", include={"pretraining", "seed"})
    stage = Stage(folder, chosen, {store.name: patterns["fingerprint"]})
    if stage.is_finished():
        say("pretrain", f"nothing to do: the encoder is in {folder}")
        return manifest_of(folder, "pretrain")
    task = pretext_task(settings, patterns)
    watch = Stopwatch()
    with stage.claimed():
        publish(folder / "config.yaml", lambda aside: aside.write_text(as_yaml(settings)))
        cluster.connect()
        _check_resources(settings)
        datasets = pattern_datasets(store, settings)
        num_patterns = datasets["train"].count()
        classes = f"{task.puzzle.num_classes} classes; " if task.puzzle else ""
        say(
            "pretrain",
            f"{settings.pretraining.pretext}: {num_patterns} {store.name}, {datasets['validation'].count()} held out; "
            f"{classes}{settings.pretraining.num_workers} worker(s), {num_parameters(task.build()):,} parameters",
        )
        state, num_epochs = fit_with_ray(
            task, datasets, folder, num_workers=settings.pretraining.num_workers, use_gpu=settings.pretraining.use_gpu
        )
        model = task.build()
        model.load_state_dict(state["best"])
        facts = _facts(task, state, datasets)
        facts["retrieval"] = _retrieval(workspace, task, model)
        told = {key: value for key, value in facts.items() if value is not None}
        exported = export(model, folder, {"pretext": settings.pretraining.pretext, **told, store.name: num_patterns})
        counts = {
            "epochs": len(state["history"]), "patterns": num_patterns,
            "classes": task.puzzle.num_classes if task.puzzle else 0,
        }  # fmt: skip
        manifest = stage.finish(
            counts, watch.seconds, architecture=asdict(task.architecture), store=store.name, **facts,
            warnings=_warnings(task, state, facts),
        )  # fmt: skip
        _summarise(manifest, num_epochs, exported)
        return manifest


def store_of(workspace: Workspace, settings: Settings) -> Path:
    """The store that the pretext task learns from: discovered patterns, or random crops."""
    return workspace.patterns if pretext_of(settings.pretraining).crops == PATTERNS else workspace.crops


def pretext_task(settings: Settings, patterns: Mapping[str, Any]) -> PretextTask:
    """The pretext task on a store, whose manifest is given."""
    counts = patterns["counts"]
    for key in ("num_neighbours", "num_coordinates"):
        asked, held = getattr(settings.pretraining, key), counts[key.removeprefix("num_")]
        if asked is not None and asked > held:
            again = f"discover again with discovery.{key}={asked}"
            if pretext_of(settings.pretraining).crops == CROPS:
                again = "crop more scans" if key == "num_neighbours" else f"crop again with discovery.num_crops={asked}"
            raise SettingsError(f"pretraining.{key}={asked} is more than the {held} in the store: lower it, or {again}")
    return PretextTask(
        settings.pretraining,
        settings.seed,
        tuple(patterns["cube_shape"]),
        counts["references"],
        settings.pretraining.num_coordinates or counts["coordinates"],
    )


def pattern_datasets(folder: Path, settings: Settings) -> dict[str, ray.data.Dataset]:
    """The selected training and held-out patterns, encoded, in Ray's object store."""
    pretraining = settings.pretraining
    datasets = {}
    for key, split in (("train", TRAINING), ("validation", VALIDATION)):
        where = predicate(split, pretraining.num_neighbours, pretraining.num_coordinates)
        source = PatternSource(folder, where=where)
        datasets[key] = ray.data.read_datasource(source, override_num_blocks=source.num_parts).materialize()
    return datasets


def check_pretext(settings: Settings) -> None:
    """Raise SettingsError if there is no such pretext task, or it does not fit the cubes or the discovery."""
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
    there = ray.cluster_resources()
    workers = settings.pretraining.num_workers
    if settings.pretraining.use_gpu and there.get("GPU", 0) < workers:
        raise SettingsError(
            f"pretraining.use_gpu=true needs {workers} GPU(s) for pretraining.num_workers={workers} and the cluster "
            f"has {there.get('GPU', 0):g}: set pretraining.use_gpu=false or join a cluster with GPUs"
        )
    if workers > there.get("CPU", 0):
        raise SettingsError(
            f"pretraining.num_workers={workers} needs as many logical CPUs and the cluster has "
            f"{there.get('CPU', 0):g}: lower it"
        )


def _facts(
    task: PretextTask, state: Mapping[str, Any], datasets: Mapping[str, ray.data.Dataset]
) -> dict[str, float | None]:
    """What the best epoch reached on held-out subjects, beside what answering without learning reaches."""
    best = min(state["history"], key=task.score)
    mean_image = None
    if task.architecture.restores:
        train, validation = (samples_of(datasets[key], task) for key in ("train", "validation"))
        mean_image = mean_image_error(train, validation)
    return {
        "epoch": best["epoch"],
        "accuracy": best.get("val_accuracy"),
        "chance": task.chance,
        "restoration_mse": best.get("val_restoration"),
        "identity_mse": best.get("val_identity"),
        "mean_image_mse": mean_image,
        "embedding_variance": best["val_embedding_variance"],
        "effective_rank": best["val_effective_rank"],
    }


def _warnings(task: PretextTask, state: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """What went wrong, in sentences; the mean image is a better answer than those that every epoch is compared with."""
    found = task.warnings(state["history"])
    error, mean_image = facts["restoration_mse"], facts["mean_image_mse"]
    if task.restores(task.num_epochs - 1) and error >= mean_image:
        found.setdefault(
            "restoration",
            f"little is learnt from restoration: the held-out error is {error:.4f} and always answering with the mean "
            f"training cube gives {mean_image:.4f}; train longer",
        )
    return list(found.values())


def _retrieval(workspace: Workspace, task: PretextTask, model: PretextNetwork) -> float | None:
    """Anatomy retrieval on discovered held-out patterns, so that all pretext tasks can be compared; None without."""
    patterns = read_json(workspace.patterns / "manifest.json")
    if patterns is None or tuple(patterns["cube_shape"]) != task.sample_shape:
        return None
    where = predicate(VALIDATION, None, task.settings.num_coordinates if task.pretext.crops == PATTERNS else None)
    table = read_patterns(workspace.patterns, TRAINING_COLUMNS, where)
    return anatomy_retrieval(model.encoder, Samples([table], task.sample_key, task.sample_shape))


def _summarise(manifest: Mapping[str, Any], num_epochs: int, exported: Path) -> None:
    told = []
    if manifest["accuracy"] is not None:
        told.append(f"accuracy {manifest['accuracy']:.3f} (chance {manifest['chance']:.3f})")
    if manifest["restoration_mse"] is not None:
        told.append(
            f"restoration error {manifest['restoration_mse']:.5f} (identity {manifest['identity_mse']:.5f}, mean image "
            f"{manifest['mean_image_mse']:.5f})"
        )
    if manifest["retrieval"] is not None:
        told.append(f"anatomy retrieval {manifest['retrieval']:.3f}")
    told.append(f"effective rank of the embedding {manifest['effective_rank']:.1f}")
    say("pretrain", f"held-out subjects: {', '.join(told)}")
    for sentence in manifest["warnings"]:
        say("pretrain", f"warning: {sentence}")
    say(
        "pretrain",
        f"{num_epochs} epochs, {mib(manifest['bytes'])}, {manifest['seconds']:.1f} s → {exported}",
    )
