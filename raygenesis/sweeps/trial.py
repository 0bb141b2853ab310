"""One trial: a short pretraining on the rows of the store that its K and C select, and what it is worth."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray import tune

from raygenesis.cluster.progress import Stopwatch
from raygenesis.errors import RaygenesisError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.stores import pretext_task
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import Settings
from raygenesis.sweeps.objectives import OBJECTIVES, few_shot_score, measures_of
from raygenesis.sweeps.space import Point, for_trial
from raygenesis.training.experiment import best_of
from raygenesis.training.feeding import Samples
from raygenesis.training.loop import NO_CALLBACKS, Callbacks, Progress, run_epochs
from raygenesis.training.workers import Workers
from raygenesis.transfer.prepared import Prepared
from raygenesis.workspace.files import Place
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.manifest import PatternsManifest

# How a trial ended, or that it has not.
WHOLE, STOPPED, FAILED, RUNNING = "whole", "stopped", "failed", "running"

# What Tune is told beside a row. PROXY: what its schedulers compare, the higher the better, whatever the objective.
PROXY, STATUS = "proxy", "status"


@dataclass(frozen=True)
class SweepTrial:
    """One training of a point."""

    point: Point
    seed: int

    @property
    def key(self) -> str:
        return digest({"point": self.point, "seed": self.seed})

    def path(self, folder: Place) -> Place:
        return folder / f"trial-{self.key}.json"


@dataclass(frozen=True)
class SweepSetup:
    """What the trials of a sweep have in common.

    patterns: the store's manifest; most_epochs: of the longest trial; target: of objective `target`.
    """

    settings: Settings
    patterns: PatternsManifest
    num_gpus: float
    num_threads: int
    most_epochs: int
    target: Prepared | None = None

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    def task(self, trial: SweepTrial) -> PretextTask:
        settings = for_trial(self.settings, trial.point, self.patterns.counts, trial.seed)
        return pretext_task(settings.pretraining, settings.seed, self.patterns)


def seeds_of(settings: Settings) -> list[int]:
    """Seeds of a point's trainings: the settings' own, with which `best.yaml` trains, and others made of it."""
    others = np.random.SeedSequence(settings.seed).generate_state(max(1, settings.sweep.num_seeds - 1))
    return [settings.seed, *(int(state) % 2**31 for state in others)][: settings.sweep.num_seeds]


def run_sweep_trial(config: dict[str, Any], blocks: Sequence[ray.ObjectRef[pa.Table]], plan: SweepSetup) -> None:
    """The trial that Tune runs. It reports a row an epoch where trials are stopped early, and a last one at the end.

    What is raised is reported too, and ends this trial only.
    """
    torch.set_num_threads(plan.num_threads)
    objective = OBJECTIVES[plan.settings.sweep.objective]
    watch, cpu_begin = Stopwatch(), time.process_time()

    def report(told: Mapping[str, Any], status: str) -> None:
        cost = {
            "seconds": round(watch.seconds, 2), "cpu_seconds": round(time.process_time() - cpu_begin, 2),
            "gpu_seconds": round(plan.num_gpus * watch.seconds, 2),
        }  # fmt: skip
        value = told.get(objective.proxy, math.nan)
        proxy = value if objective.mode == "max" else -value
        tune.report({PROXY: proxy, "row": _json({**told, **cost}), STATUS: status})

    try:
        trial = SweepTrial(config["point"], config["seed"])
        told = train_and_measure(trial, ray.get(list(blocks)), plan, lambda told: report(told, RUNNING))
        report(told, WHOLE)
    except RaygenesisError as error:
        report({"reason": str(error)}, FAILED)
    except Exception as error:
        report({"reason": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}, FAILED)


def train_and_measure(
    trial: SweepTrial, tables: Sequence[pa.Table], plan: SweepSetup, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train, and measure the best weights. Where trials are stopped early `report` is called after all but the last
    epoch with what the best weights so far are worth; nothing is to stop a trial that is at its end."""
    task = plan.task(trial)
    selection = select_rows(tables, task)
    measured: dict[str, float] = {}

    def row(now: Progress) -> dict[str, Any]:
        best = best_of(task, now.history)
        return {
            **measured, "loss": best["val_loss"], "accuracy": best["val_accuracy"], "chance": task.chance,
            "restoration": best.get("val_restoration"), "patterns": len(selection.train), "epochs": len(now.history),
        }  # fmt: skip

    def on_epoch(now: Progress) -> None:
        if best_of(task, now.history) is now.history[-1]:
            network: Any = now.evaluated_model
            measured.update(measures_of(network.encoder, selection.probe))
        if len(now.history) < task.num_epochs:
            report(row(now))

    callbacks = NO_CALLBACKS if plan.settings.sweep.stopping == "none" else Callbacks(on_epoch=on_epoch)
    workers = Workers(device=plan.device)
    now = run_epochs(task, selection.train, selection.validation, workers=workers, callbacks=callbacks)
    model = task.build()
    model.load_state_dict(now.best)
    model.to(plan.device)
    measured.update(measures_of(model.encoder, selection.probe))
    if plan.target is not None:
        measured["target"] = few_shot_score(model, plan.target, plan.num_gpus)
    return row(now)


@dataclass(frozen=True)
class Selection:
    """Rows of one store. probe: every held-out pattern, whatever K and C, so that points can be compared."""

    train: Samples
    validation: Samples
    probe: Samples


def select_rows(tables: Sequence[pa.Table], task: PretextTask) -> Selection:
    """What a point's task learns from, is validated on and is measured by."""
    everything = Samples(tables, task.sample_key, task.sample_shape)
    columns = everything.columns
    within = columns["coordinate"] < task.num_coordinates
    near = columns["rank"] < (task.settings.num_neighbours or math.inf)
    held_out = columns["split"] == VALIDATION
    return Selection(
        everything.select((columns["split"] == TRAINING) & within & near), everything.select(held_out & within),
        everything.select(held_out),
    )  # fmt: skip


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None where one is no number: JSON has none."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
