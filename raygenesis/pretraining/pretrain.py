"""Pretrain: pattern shards → Ray Data → Ray Train → an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.data

from raygenesis import cluster
from raygenesis.config import Settings, as_yaml
from raygenesis.errors import SettingsError
from raygenesis.patterns.reader import predicate
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.patterns.source import PatternSource
from raygenesis.pretraining.corruptions import CORRUPTIONS
from raygenesis.pretraining.networks import SemanticGenesis
from raygenesis.pretraining.pretext import PretextTask
from raygenesis.pretraining.probe import anatomy_retrieval, mean_image_error
from raygenesis.pretraining.weights import export, num_parameters
from raygenesis.progress import mib, say
from raygenesis.training import fit_with_ray, samples_of
from raygenesis.workspace import Stage, Stopwatch, Workspace, manifest_of, publish


def pretrain(workspace: Workspace, settings: Settings, name: str = "default") -> dict[str, Any]:
    """Train on the pattern store and export the encoder to `runs/<name>/`; returns the manifest.

    An interrupted run goes on from its newest checkpoint.
    """
    check_corruption(settings)
    patterns = manifest_of(workspace.patterns, "discover")
    folder = workspace.run(name)
    chosen = settings.model_dump(mode="json", include={"pretraining", "seed"})
    stage = Stage(folder, chosen, {"patterns": patterns["fingerprint"]})
    if stage.is_finished():
        say("pretrain", f"nothing to do: the encoder is in {folder}")
        return manifest_of(folder, "pretrain")
    task = pretext_task(settings, patterns)
    watch = Stopwatch()
    with stage.claimed():
        publish(folder / "config.yaml", lambda aside: aside.write_text(as_yaml(settings)))
        cluster.connect()
        _check_resources(settings)
        datasets = pattern_datasets(workspace.patterns, settings)
        say(
            "pretrain",
            f"{datasets['train'].count()} patterns, {datasets['validation'].count()} held out, "
            f"{task.num_classes} classes; {settings.pretraining.num_workers} worker(s), "
            f"{num_parameters(task.build()):,} parameters",
        )
        state, num_epochs = fit_with_ray(
            task, datasets, folder, num_workers=settings.pretraining.num_workers, use_gpu=settings.pretraining.use_gpu
        )
        model = task.build()
        model.load_state_dict(state["best"])
        facts = _facts(task, state, model, datasets)
        architecture = {
            "ndim": settings.ndim, "base_width": settings.pretraining.base_width, "num_classes": task.num_classes,
        }  # fmt: skip
        exported = export(model, folder, architecture, {**facts, "patterns": patterns["counts"]["patterns"]})
        counts = {"epochs": len(state["history"]), "patterns": datasets["train"].count(), "classes": task.num_classes}
        manifest = stage.finish(counts, watch.seconds, architecture=architecture, **facts)
        _summarise(manifest, num_epochs, exported)
        return manifest


def pretext_task(settings: Settings, patterns: Mapping[str, Any]) -> PretextTask:
    """The pretext task on a pattern store, whose manifest is given."""
    counts = patterns["counts"]
    for key in ("num_neighbours", "num_coordinates"):
        asked, held = getattr(settings.pretraining, key), counts[key.removeprefix("num_")]
        if asked is not None and asked > held:
            raise SettingsError(
                f"pretraining.{key}={asked} is more than the {held} in the pattern store: lower it, or discover again "
                f"with discovery.{key}={asked}"
            )
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


def check_corruption(settings: Settings) -> None:
    """Raise SettingsError if the corruption set is unknown."""
    if settings.pretraining.corruption not in CORRUPTIONS:
        raise SettingsError(
            f"pretraining.corruption={settings.pretraining.corruption!r} is unknown: choose one of "
            f"{', '.join(CORRUPTIONS)}"
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
    task: PretextTask, state: Mapping[str, Any], model: SemanticGenesis, datasets: Mapping[str, ray.data.Dataset]
) -> dict[str, float]:
    """What the best epoch reached on held-out subjects, beside what answering without learning reaches."""
    best = min(state["history"], key=task.score)
    train, validation = (samples_of(datasets[key], task) for key in ("train", "validation"))
    return {
        "epoch": best["epoch"],
        "accuracy": best["val_accuracy"],
        "chance": 1 / task.num_classes,
        "restoration_mse": best["val_restoration"],
        "identity_mse": best["val_identity"],
        "mean_image_mse": mean_image_error(train, validation),
        "retrieval": anatomy_retrieval(model.encoder, validation),
    }


def _summarise(manifest: Mapping[str, Any], num_epochs: int, exported: Path) -> None:
    say(
        "pretrain",
        f"held-out subjects: classification accuracy {manifest['accuracy']:.3f} (chance {manifest['chance']:.3f}), "
        f"restoration error {manifest['restoration_mse']:.5f} (identity {manifest['identity_mse']:.5f}, mean image "
        f"{manifest['mean_image_mse']:.5f}), anatomy retrieval {manifest['retrieval']:.3f}",
    )
    say(
        "pretrain",
        f"{num_epochs} epochs, {mib(manifest['bytes'])}, {manifest['seconds']:.1f} s → {exported}",
    )
