"""Which point comes next: all of a grid, points at random, or what Optuna's TPE makes of the results so far."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from raygenesis.sweeps.space import Point, Range, Space

# Draws of points that are known already before the search is at its end, and before they are drawn at random.
MOST_REPEATS, MOST_FOCUSED = 1000, 20


@dataclass(frozen=True)
class TrialOutcome:
    """What became of a point. value: None where it failed; whole: not stopped early, which it was after `epochs`."""

    value: float | None
    whole: bool = True
    epochs: int = 0


class Next(Enum):
    """Instead of a point: nothing before more results are there, or nothing any more."""

    WAIT = 1
    DONE = 2


class Search(Protocol):
    def next(self, outcome_of: Callable[[Point], TrialOutcome | None]) -> Point | Next:
        """The next point; `outcome_of` a point is None while it is being trained."""


def search_of(kind: str, space: Space, num_points: int, seed: int, lag: int, mode: str) -> Search:
    """kind: grid, random or tpe; mode: max or min; lag: of TPE, how many points are being trained at once."""
    if kind == "grid":
        return GridSearch(space)
    num_points = min(num_points, space.size or num_points)
    if kind == "random":
        return Sampled(space, num_points, RandomSampler(seed), mode, None)
    # Without results TPE draws at random; Optuna's ten such points would be most of a small sweep.
    return Sampled(space, num_points, TPESampler(n_startup_trials=min(10, 1 + num_points // 3), seed=seed), mode, lag)


class GridSearch:
    """Every point of a space of choices, in order."""

    def __init__(self, space: Space) -> None:
        self._points: Iterator[Point] = space.corners()

    def next(self, outcome_of: Callable[[Point], TrialOutcome | None]) -> Point | Next:
        return next(self._points, Next.DONE)


class Sampled:
    """Points of an Optuna sampler, no point twice.

    With a `lag` point n is asked for when the first n + 1 - lag points have ended, and from their results alone:
    points then depend on seed and results, not on which trial ends first, and are the same after a kill.
    """

    def __init__(self, space: Space, num_points: int, sampler: BaseSampler, mode: str, lag: int | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(sampler=sampler, direction="maximize" if mode == "max" else "minimize")
        self._anywhere = optuna.create_study(sampler=RandomSampler(0))
        self._distributions = {key: _distribution(axis) for key, axis in space.axes.items()}
        self._num_points, self._lag = num_points, lag
        self._asked: list[tuple[optuna.Trial, Point]] = []
        self._told = 0

    def next(self, outcome_of: Callable[[Point], TrialOutcome | None]) -> Point | Next:
        if len(self._asked) == self._num_points:
            return Next.DONE
        while self._lag is not None and self._told < len(self._asked) + 1 - self._lag:
            trial, point = self._asked[self._told]
            if (outcome := outcome_of(point)) is None:
                return Next.WAIT
            self._tell(trial, outcome)
            self._told += 1
        for attempt in range(MOST_REPEATS):
            if attempt >= MOST_FOCUSED:  # of a small space TPE draws the best points again and again
                self._study.enqueue_trial(self._anywhere.ask(self._distributions).params)
            trial = self._study.ask(self._distributions)
            point = {key: trial.params[key] for key in self._distributions}
            if all(point != earlier for _, earlier in self._asked):
                self._asked.append((trial, point))
                return point
            self._study.tell(trial, state=TrialState.FAIL)
        self._num_points = len(self._asked)
        return Next.DONE

    def _tell(self, trial: optuna.Trial, outcome: TrialOutcome) -> None:
        if outcome.value is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif outcome.whole:
            self._study.tell(trial, outcome.value)
        else:  # TPE counts it below those that were trained to the end
            trial.report(outcome.value, outcome.epochs)
            self._study.tell(trial, state=TrialState.PRUNED)


def _distribution(axis: tuple[Any, ...] | Range) -> BaseDistribution:
    if not isinstance(axis, Range):
        return CategoricalDistribution(axis)
    if isinstance(axis.low, int):
        return IntDistribution(axis.low, int(axis.high), log=axis.log, step=int(axis.step or 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a step that is no binary fraction
        return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)
