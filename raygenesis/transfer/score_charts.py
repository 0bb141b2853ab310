"""Figures of a target: the score by the number of labelled subjects, and by the steps of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raygenesis.text import charts
from raygenesis.text.charts import Chart, ChartLine, Labels
from raygenesis.transfer.curves import curves_of, mean_curve
from raygenesis.transfer.metrics import TITLES
from raygenesis.transfer.results import Results, TrialResult, Trials


def score_charts(of: str, results: Results) -> list[Chart]:
    """The figures of a target that there is something to draw for.

    One of the score by the number of labelled subjects, where there are several, and for each number one of the score
    by steps, where trials have curves. of: what the figures show, as `Labels` has it.
    """
    if not results:
        return []
    metric = TITLES[next(iter(_any_of(results).figures))]
    by_labelled = {
        name: series for name in _names(results) if len((series := _by_labelled(results, name)).x) > 1
    }  # fmt: skip
    drawn = []
    if by_labelled:
        labels = Labels(f"{metric} by labelled subjects", "labelled subjects", f"{metric}, mean ± s.d. over trials", of)
        drawn.append(charts.lines(labels, by_labelled, log=True))
    for labelled, starts in results.items():
        by_steps = _by_steps(starts)
        if by_steps:
            title = f"Validation {metric} by steps, {labelled} labelled"
            drawn.append(charts.lines(Labels(title, "steps", f"{metric}, mean ± s.d. over trials", of), by_steps))
    return drawn


def _any_of(results: Results) -> TrialResult:
    return next(iter(next(iter(results.values())).values()))[0]


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(name for starts in results.values() for name in starts))


def _by_labelled(results: Results, name: str) -> ChartLine:
    """The primary figure, the first, of an initialisation's trials, by the number of subjects that they learnt from."""
    values = {}
    for starts in results.values():
        if trials := starts.get(name):
            values[trials[0].subjects] = [next(iter(trial.figures.values())) for trial in trials]
    x = sorted(number for number in values if number)  # an earlier version did not record it
    spread = [float(np.std(values[number], ddof=1)) if len(values[number]) > 1 else 0.0 for number in x]
    return ChartLine(x, [float(np.mean(values[number])) for number in x], spread)


def _by_steps(starts: Mapping[str, Trials]) -> dict[str, ChartLine]:
    """The mean validation curve of each initialisation that has curves of two points or more."""
    means = {name: mean_curve(curves_of(trials)) for name, trials in starts.items()}
    return {name: ChartLine(*map(list, zip(*points, strict=True))) for name, points in means.items() if len(points) > 1}
