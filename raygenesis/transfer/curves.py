"""Validation curves of trials: their mean, and the steps that it takes to reach a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raygenesis.transfer.metrics import PRIMARY
from raygenesis.transfer.results import Trials

# The share of random weights' final score that is to be reached.
SHARE = 0.9

# A trial's curve: steps, and the primary figure on validation subjects after each.
Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class StepsToScore:
    """How many trials reach a score, and their mean number of steps until then.

    mean: None where none does. num_reaching: None where trials have no curves.
    """

    mean: float | None
    num_reaching: int | None


NO_CURVES = StepsToScore(None, None)


def steps_to_random(results: Mapping[str, Trials], task: str, randoms: Mapping[str, str]) -> dict[str, StepsToScore]:
    """The steps of each initialisation to 90 % of the mean final validation score of random weights.

    results: the trials of each initialisation with one number of labelled subjects. randoms: by initialisation the name
    of the random weights of its architecture. Left out are initialisations whose trials, or whose random weights'
    trials, do not all have curves. An error is reached at random weights' final one divided by 0.9.
    """
    found = {}
    for name, trials in results.items():
        curves, of_random = curves_of(trials), curves_of(results.get(randoms.get(name, ""), []))
        if len(curves) == len(trials) and of_random:
            final, sign = float(np.mean([curve[-1][1] for curve in of_random])), PRIMARY[task].sign
            score = final * SHARE if sign > 0 else final / SHARE
            steps = [step for curve in curves if (step := steps_to_score(curve, score, sign)) is not None]
            found[name] = StepsToScore(float(np.mean(steps)) if steps else None, len(steps))
    return found


def steps_to_score(curve: Curve, score: float, sign: int) -> int | None:
    """The first step at which a curve reaches a score; None where it never does. sign: as `Primary` has it."""
    return next((step for step, value in curve if sign * value >= sign * score), None)


def curves_of(trials: Trials) -> list[Curve]:
    """The curves of those trials that have one."""
    return [trial.curve for trial in trials if trial.curve]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[int, float, float]]:
    """Step, mean and standard deviation (a sample's; 0 of one) over the curves, from where all have begun.

    Between its points, and after it ended, a curve stays at its last value.
    """
    steps = sorted({step for curve in curves for step, _ in curve})
    found = []
    for step in steps:
        values = [[value for at, value in curve if at <= step][-1:] for curve in curves]
        if all(values):
            numbers = np.array(values)
            found.append((step, float(numbers.mean()), float(numbers.std(ddof=1)) if len(curves) > 1 else 0.0))
    return found
