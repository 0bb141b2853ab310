"""The learning rate of each initialisation, from a grid, by the validation subjects.

Each rate is tried on draws of labelled subjects of its own, with a trial's number of steps. Test subjects
are not among the cases that a tuning trial is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from raygenesis.cluster.progress import say
from raygenesis.training.experiment import TrainingError
from raygenesis.transfer.examples import SEGMENTATION
from raygenesis.transfer.initialisations import Initialisation
from raygenesis.transfer.metrics import PRIMARY
from raygenesis.transfer.planned import PlannedTrial, run_trials, trials_failed
from raygenesis.transfer.prepared import Prepared
from raygenesis.workspace.files import Place
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.manifest import ChosenRate

# By the name of an initialisation and the number of labelled subjects; empty where the settings give one rate.
Rates: TypeAlias = Mapping[tuple[str, int | str], ChosenRate]


def choose_rates(ready: Prepared, initialisations: Sequence[Initialisation], folder: Place, key: str) -> Rates:
    """Run the tuning trials that have no result yet, and choose a rate for each initialisation and number of subjects.

    folder: the target's. key: digest of the settings and the target. Raises TrainingError where all of an
    initialisation's tuning trials diverged, or where one failed for another reason.
    """
    planned = _plan(ready, initialisations, key)
    missing = [each for each in planned if each.finished(folder) is None]
    failures = run_trials(missing, ready, folder, "tuning trials") if missing else []
    others = [failure for failure in failures if not isinstance(failure.error, TrainingError)]
    if others:
        raise trials_failed(others, len(missing))
    primary = PRIMARY[ready.setup.task]
    results = [(each, each.finished(folder)) for each in planned]
    chosen: dict[tuple[str, int | str], ChosenRate] = {}
    for name, labelled in dict.fromkeys((each.initialisation.name, each.trial.labelled) for each in planned):
        scores: dict[float, list[float | None]] = {}
        for each, result in results:
            if (each.initialisation.name, each.trial.labelled) == (name, labelled) and each.rate is not None:
                scores.setdefault(each.rate, []).append(None if result is None else result.figures[primary.name])
        means = mean_scores(scores)
        if not means:
            raise trials_failed(failures, len(missing))
        rate = best_rate(means, primary.sign)
        chosen[name, labelled] = ChosenRate(
            initialisation=name, labelled=labelled, rate=rate,
            scores={f"{tried:g}": score for tried, score in means.items()},
        )  # fmt: skip
        _report(chosen[name, labelled], primary.title, list(scores))
    return chosen


def mean_scores(scores: Mapping[float, Sequence[float | None]]) -> dict[float, float]:
    """The mean of each rate's scores; a rate at which a training diverged (None) is left out."""
    means = {}
    for rate, values in scores.items():
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(values):
            means[rate] = float(np.mean(numbers))
    return means


def best_rate(means: Mapping[float, float], sign: int) -> float:
    """The rate with the best mean, of several the lowest. sign: 1 where a higher score is better, -1 where a lower."""
    return min(means, key=lambda rate: (-sign * means[rate], rate))


def _plan(ready: Prepared, initialisations: Sequence[Initialisation], key: str) -> list[PlannedTrial]:
    settings, split = ready.setup.settings, ready.split
    if not settings.chooses_rate(ready.setup.task == SEGMENTATION):
        return []
    planned = []
    for trial in split.tuning:
        names = [[example.name for example in part] for part in (trial.examples, split.validation)]
        for each in (initialisation.of_trial(trial.number) for initialisation in initialisations):
            for rate in settings.rates:
                own_key = digest([key, each.fingerprint, *names, rate])
                planned.append(PlannedTrial(each, trial, own_key, rate, tunes=True))
    return planned


def _report(chosen: ChosenRate, figure: str, tried: Sequence[float]) -> None:
    means = ", ".join(
        f"{rate:g}: {chosen.scores[f'{rate:g}']:.3f}" if f"{rate:g}" in chosen.scores else f"{rate:g}: diverged"
        for rate in tried
    )
    say(
        "finetune",
        f"{chosen.initialisation}, {chosen.labelled} labelled: learning rate {chosen.rate:g} (validation {figure} by "
        f"rate {means})",
    )
