"""Figures of a target: what is drawn, and what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raygenesis.transfer.results import TrialResult
from raygenesis.transfer.score_charts import score_charts
from tests.support.trials import trials

NAMES = [f"task-{number}" for number in range(12)]


def learnt(labelled: int | str, subjects: int, mean: float, with_curve: bool = False) -> list[TrialResult]:
    curve = ((10, mean / 2), (20, mean)) if with_curve else ()
    drawn = trials([mean - 0.1, mean + 0.1])
    return [replace(trial, labelled=labelled, subjects=subjects, curve=curve) for trial in drawn]


def test_nothing_is_drawn_of_one_number_of_labelled_subjects_without_curves() -> None:
    assert score_charts("target x", {}) == []
    assert score_charts("target x", {5: {"random": learnt(5, 5, 0.4)}}) == []


def test_every_initialisation_is_a_line_with_its_scores_in_words() -> None:
    results = {
        labelled: {name: learnt(labelled, subjects, 0.02 * subjects + 0.01 * n) for n, name in enumerate(NAMES)}
        for labelled, subjects in ((5, 5), ("50%", 20))
    }
    (chart,) = score_charts("target x", results)
    assert chart.title == "Dice by labelled subjects" and chart.name == "target-x-dice-by-labelled-subjects"
    for number, name in enumerate(NAMES):
        assert f">{name}<" in chart.svg and f">{name}<" in chart.inline
        assert f"{name} {0.4 + 0.01 * number:.4g}" in chart.alt
    assert ">5<" in chart.svg and ">20<" in chart.svg  # ticks are what was measured
    styles = {line for line in chart.svg.splitlines() if 'style="fill: none; stroke' in line}
    assert len(styles) >= len(NAMES)


def test_curves_are_drawn_for_each_number_of_labelled_subjects() -> None:
    results = {
        5: {"random": learnt(5, 5, 0.4, True), "bare": learnt(5, 5, 0.4)},
        9: {"random": learnt(9, 9, 0.6, True)},
    }
    by_labelled, five, nine = score_charts("target x", results)
    assert "bare" not in five.alt and [five.title, nine.title] == [
        "Validation Dice by steps, 5 labelled", "Validation Dice by steps, 9 labelled",
    ]  # fmt: skip
    assert "bare" not in by_labelled.alt  # a single number of labelled subjects is no line
    assert "random 0.6" in nine.alt and {chart.wide for chart in (by_labelled, five, nine)} == {True}


@pytest.mark.parametrize("metric", ["mae", "auc"])
def test_figures_are_called_as_people_call_them(metric: str) -> None:
    results = {n: {"a": [replace(each, subjects=n) for each in trials([0.5, 0.6], metric)]} for n in (5, 9)}
    (chart,) = score_charts("target x", results)
    assert chart.title.startswith({"mae": "mean absolute error", "auc": "AUC"}[metric])
