"""One trial: a short pretraining on the rows of the store that its K and C select, and what it is worth."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune

from raygenesis.cluster.progress import Stopwatch
from raygenesis.errors import RaygenesisError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.stores import pretext_task, stored_patterns
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import Settings
from raygenesis.settings.streams import SWEEP_SEEDS
from raygenesis.sweeps.measures import EncoderMeasures, few_shot_score, measures_of
from raygenesis.sweeps.objectives import OBJECTIVES
from raygenesis.sweeps.records import FAILED, RUNNING, WHOLE, SweepTrial, TrialRecord
from raygenesis.sweeps.space import at_point, in_trial
from raygenesis.training.experiment import best_of
from raygenesis.training.feeding import Samples
from raygenesis.training.loop import NO_CALLBACKS, Callbacks, Progress, run_epochs
from raygenesis.training.workers import Workers
from raygenesis.transfer.prepared import Prepared
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import PatternsManifest

# What is reported to Tune. PROXY: what its schedulers compare, the higher the better, whatever the objective. RECORD:
# the trial's record so far.
PROXY, RECORD = "proxy", "record"


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
        settings = at_point(self.settings, in_trial(trial.point, self.settings.sweep), self.patterns.counts)
        return pretext_task(settings.pretraining, trial.seed, self.patterns)


def seeds_of(seed: int, num_seeds: int) -> list[int]:
    """Seeds of a point's trainings: the settings' own, with which `best.yaml` trains, and others derived from it."""
    others = SWEEP_SEEDS.sequence(seed).generate_state(max(1, num_seeds - 1))
    return [seed, *(int(state) % 2**31 for state in others)][:num_seeds]


def run_sweep_trial(config: dict[str, Any], patterns: Place, setup: SweepSetup) -> None:
    """The trial that Tune runs. It reports a record an epoch where trials are stopped early, and a last one at the end.

    An error is reported too, and ends this trial only.
    """
    torch.set_num_threads(setup.num_threads)
    objective = OBJECTIVES[setup.settings.sweep.objective]
    watch, cpu_begin = Stopwatch(), time.process_time()
    begun = TrialRecord(point=config["point"], seed=config["seed"], status=RUNNING)

    def report(record: TrialRecord) -> None:
        record = replace(
            record, seconds=round(watch.seconds, 2), cpu_seconds=round(time.process_time() - cpu_begin, 2),
            gpu_seconds=round(setup.num_gpus * watch.seconds, 2),
        )  # fmt: skip
        value = record.measure(objective.proxy)
        value = math.nan if value is None else value
        tune.report({PROXY: value if objective.mode == "max" else -value, RECORD: record.tree()})

    try:
        report(train_and_measure(begun, patterns, setup, report))
    except RaygenesisError as error:
        report(replace(begun, status=FAILED, reason=str(error)))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        report(replace(begun, status=FAILED, reason=reason, traceback=traceback.format_exc()))


def train_and_measure(
    begun: TrialRecord, patterns: Place, setup: SweepSetup, report: Callable[[TrialRecord], None]
) -> TrialRecord:
    """Train a trial, and measure the best weights; returns its record, but for its costs.

    Where trials are stopped early `report` is called after all but the last epoch with what the best weights so far are
    worth; nothing is to stop a trial that is at its end.
    """
    task = setup.task(begun.trial)
    selection = select_patterns(patterns, task)
    measures: EncoderMeasures | None = None

    def record(now: Progress) -> TrialRecord:
        best = best_of(task, now.history)
        known = (None, None) if measures is None else measures
        return replace(
            begun, retrieval=known[0], rankme=known[1], loss=best.get("val_loss"), accuracy=best.get("val_accuracy"),
            chance=task.chance, restoration=best.get("val_restoration"), patterns=len(selection.train),
            epochs=len(now.history),
        )  # fmt: skip

    def on_epoch(now: Progress) -> None:
        nonlocal measures
        if best_of(task, now.history) is now.history[-1]:
            network: Any = now.evaluated_model
            measures = measures_of(network.encoder, selection.probe)
        if len(now.history) < task.num_epochs:
            report(record(now))

    callbacks = NO_CALLBACKS if setup.settings.sweep.stopping == "none" else Callbacks(on_epoch=on_epoch)
    workers = Workers(device=setup.device)
    now = run_epochs(task, selection.train, selection.validation, workers=workers, callbacks=callbacks)
    model = task.build()
    model.load_state_dict(now.best)
    model.to(setup.device)
    measures = measures_of(model.encoder, selection.probe)
    target = None if setup.target is None else few_shot_score(model, setup.target, setup.num_gpus)
    return replace(record(now), status=WHOLE, target=target)


@dataclass(frozen=True)
class Selection:
    """Rows of one store. probe: every held-out pattern, whatever K and C, so that points can be compared."""

    train: Samples
    validation: Samples
    probe: Samples


def select_patterns(folder: Place, task: PretextTask) -> Selection:
    """What a point's task learns from, is validated on and is measured by."""
    train = replace(stored_patterns(folder, task.settings, TRAINING), num_coordinates=task.num_coordinates)
    validation = replace(train, split=VALIDATION, memory_gib=0.0)
    probe = replace(validation, num_neighbours=None, num_coordinates=None)
    return Selection(*(each.open(task.sample_key, task.sample_shape) for each in (train, validation, probe)))
