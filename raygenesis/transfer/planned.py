"""Trials that are planned: which have a result already, and running the others side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from raygenesis.cluster import capacity, fan_out
from raygenesis.cluster.progress import progress
from raygenesis.training.experiment import TrainingError
from raygenesis.transfer.initialisations import Initialisation
from raygenesis.transfer.prepared import CPUS_PER_TRIAL, Prepared
from raygenesis.transfer.results import TrialResult, read_result, result_path
from raygenesis.transfer.split import Trial
from raygenesis.transfer.trial import TrialTask, run_trial
from raygenesis.workspace.files import Place


@dataclass(frozen=True)
class PlannedTrial:
    """A trial of one initialisation. key: digest of what decides its result; rate, tunes: as `TrialTask` has them."""

    initialisation: Initialisation
    trial: Trial
    key: str
    rate: float | None = None
    tunes: bool = False

    def finished(self, folder: Place) -> TrialResult | None:
        """Its result in a target's folder; None where there is none of this very trial."""
        name, trial, tried = self.initialisation.name, self.trial, self.rate if self.tunes else None
        result = read_result(result_path(folder, name, trial.labelled, trial.number, tried))
        return result if result is not None and result.key == self.key else None

    def task(self, ready: Prepared) -> TrialTask:
        """What runs it: a task is given the cases that it needs instead of the examples."""
        cases = (ready.cases_of_tuning if self.tunes else ready.cases_of)(self.trial)
        without = replace(self.trial, examples=())
        return TrialTask(self.initialisation, without, self.key, cases, self.rate, self.tunes)


@dataclass(frozen=True)
class TrialFailure:
    """A trial that failed, and why."""

    task: TrialTask
    error: Exception


def run_trials(
    planned: Sequence[PlannedTrial], ready: Prepared, folder: Place, unit: str = "trials"
) -> list[TrialFailure]:
    """Run trials side by side, as many at a time as the cluster has room for; returns those that failed.

    unit: what the progress calls them.
    """
    setup = ready.setup
    options = fan_out.TaskOptions(
        CPUS_PER_TRIAL, setup.num_gpus, runtime_env=fan_out.TRAINING_ENVIRONMENT,
        max_tasks=partial(capacity.num_concurrent, CPUS_PER_TRIAL, setup.num_gpus),
    )  # fmt: skip
    failures: list[TrialFailure] = []
    tasks = (each.task(ready) for each in planned)
    with progress("finetune", len(planned), unit) as ticker:
        for outcome in fan_out.outcomes(run_trial, tasks, setup, folder, options=options):
            if outcome.error is None:
                ticker.advance(note=outcome.result())
            else:
                failures.append(TrialFailure(outcome.item, outcome.error))
                ticker.advance(note="failed")
    return failures


def trials_failed(failures: Sequence[TrialFailure], num_trials: int) -> TrainingError:
    """The error that says how many of the trials that were run failed, and why the first did."""
    first = failures[0]
    reason = str(first.error).strip().splitlines()[-1]
    return TrainingError(
        f"{len(failures)} of {num_trials} trials failed, the others are kept; the first, "
        f"{first.task.initialisation.name}, trial {first.task.trial.number}: {reason}; run the same command again to "
        "try them once more"
    )
