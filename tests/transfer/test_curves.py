"""Validation curves: steps to a score, and means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raygenesis.transfer.curves import mean_curve, steps_to_random, steps_to_score
from raygenesis.transfer.results import TrialResult
from raygenesis.transfer.statistics import compare_initialisations
from tests.support.trials import trials

RANDOMS = {"random": "random", "ours": "random", "alone": "random-2d"}


def curved(*curves: tuple[tuple[int, float], ...], metric: str = "dice") -> list[TrialResult]:
    figures = [0.5 + 0.1 * number for number in range(len(curves))]
    return [replace(trial, curve=curve) for trial, curve in zip(trials(figures, metric), curves, strict=True)]


def test_the_first_step_at_which_a_score_is_reached() -> None:
    curve = ((10, 0.2), (20, 0.5), (30, 0.4), (40, 0.6))
    assert [steps_to_score(curve, score, 1) for score in (0.1, 0.5, 0.55, 0.7)] == [10, 20, 40, None]
    assert [steps_to_score(curve, score, -1) for score in (0.5, 0.1)] == [10, None]


def test_it_is_ninety_percent_of_what_random_weights_have_at_the_end() -> None:
    results = {
        "random": curved(((10, 0.3), (20, 0.55)), ((10, 0.2), (20, 0.45))),  # 0.5 at the end: 0.45
        "ours": curved(((10, 0.46), (20, 0.44)), ((10, 0.44), (20, 0.6)), ((10, 0.1), (20, 0.2))),
        "alone": curved(((10, 0.9),)),
    }
    found = steps_to_random(results, "segmentation", RANDOMS)
    assert {name: (each.mean, each.num_reaching) for name, each in found.items()} == {
        "random": (20, 2), "ours": (15, 2),
    }  # fmt: skip
    rows = compare_initialisations({name: each[:2] for name, each in results.items() if name != "alone"},
        "segmentation", 5, RANDOMS)  # fmt: skip
    assert [(row.steps_to_score, row.num_reaching) for row in rows] == [(20, 2), (15, 2)]


def test_an_error_is_reached_from_above_and_may_never_be() -> None:
    results = {
        "random": curved(((10, 3.0), (20, 1.8)), metric="mae"),  # 2 is as near as 90 % of a score
        "ours": curved(((10, 2.0), (20, 1.0)), ((10, 9.0),), metric="mae"),
        "never": curved(((10, 9.0),), metric="mae"),
    }
    found = steps_to_random(results, "regression", RANDOMS | {"never": "random"})
    assert (found["ours"].mean, found["ours"].num_reaching) == (10, 1)
    assert (found["never"].mean, found["never"].num_reaching) == (None, 0)


def test_without_curves_there_are_no_steps() -> None:
    plain, curve = trials([0.5, 0.6]), curved(((10, 0.5),), ((10, 0.6),))
    assert steps_to_random({"random": plain, "ours": curve}, "segmentation", RANDOMS) == {}
    (row,) = compare_initialisations({"ours": curve}, "segmentation", 5, {})
    assert row.steps_to_score is None and row.num_reaching is None


def test_a_mean_curve_begins_where_all_have_and_goes_on_with_last_values() -> None:
    curves = [((10, 0.2), (20, 0.4)), ((10, 0.4), (20, 0.6), (30, 0.9)), ((15, 0.3), (30, 0.3))]
    expected = {15: (0.2, 0.4, 0.3), 20: (0.4, 0.6, 0.3), 30: (0.4, 0.9, 0.3)}
    found = mean_curve(curves)
    assert [step for step, _, _ in found] == list(expected)
    for (_, mean, sd), values in zip(found, expected.values(), strict=True):
        assert (mean, sd) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert mean_curve([((1, 0.5),)]) == [(1, 0.5, 0.0)] and mean_curve([]) == []
