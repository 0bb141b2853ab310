"""Tests over pretraining seeds: how often they reject by chance, against SciPy and by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from raygenesis.transfer.seeds import SeededFigures, p_over_seeds
from raygenesis.transfer.statistics import compare_initialisations
from tests.support.trials import trials

NUM_TRIALS, NUM_STUDIES = 10, 600


def simulated(generator: np.random.Generator, num_seeds: int | None, seeds_vary_by: float = 1.0) -> SeededFigures:
    """Ten trials that vary by 1 within each seed, which they take in turn; None: each trial is a seed of its own."""
    sources = np.arange(NUM_TRIALS) % (num_seeds or NUM_TRIALS)
    values = generator.normal(0, seeds_vary_by, NUM_TRIALS)[sources] + generator.normal(0, 1, NUM_TRIALS)
    return SeededFigures(values, sources if num_seeds else None)


@pytest.mark.parametrize(
    ("ours", "theirs", "ignoring_seeds"), [(2, 2, 0.2), (3, 3, 0.15), (2, None, 0.12), (3, None, 0.1)]
)
def test_without_a_difference_one_in_twenty_is_found(ours: int, theirs: int | None, ignoring_seeds: float) -> None:
    """Seeds that vary as much as trials: over trials alone Welch's test finds several times as many."""
    generator = np.random.default_rng(0)
    studies = [(simulated(generator, ours), simulated(generator, theirs)) for _ in range(NUM_STUDIES)]
    over_seeds = np.mean([p_over_seeds(first, second) < 0.05 for first, second in studies])
    values = [np.array([study[side].values for study in studies]) for side in (0, 1)]
    over_trials = np.mean(stats.ttest_ind(*values, axis=1, equal_var=False).pvalue < 0.05)
    assert over_seeds == pytest.approx(0.05, abs=0.025)
    assert over_trials > ignoring_seeds


def test_seeds_that_do_not_differ_are_not_found_either() -> None:
    generator = np.random.default_rng(1)
    for ours, theirs in ((2, 2), (2, None)):
        studies = [(simulated(generator, ours, 0), simulated(generator, theirs, 0)) for _ in range(NUM_STUDIES)]
        assert np.mean([p_over_seeds(*study) < 0.05 for study in studies]) < 0.07


def test_a_large_difference_is_found_with_three_seeds() -> None:
    generator = np.random.default_rng(2)
    studies = [(simulated(generator, 3), simulated(generator, 3)) for _ in range(200)]
    found = [p_over_seeds(replace(ours, values=ours.values + 4), theirs) < 0.05 for ours, theirs in studies]
    assert 0.8 < np.mean(found) < 1


def test_means_of_seeds_are_compared_as_scipy_does() -> None:
    first = SeededFigures(np.array([0.5, 0.7, 0.6, 0.9]), np.array([0, 1, 0, 1]))  # means 0.55 and 0.8
    second = SeededFigures(np.array([0.1, 0.2, 0.4, 0.3, 0.5]), np.array([0, 1, 2, 0, 1]))  # 0.2, 0.35 and 0.4
    assert p_over_seeds(first, second) == pytest.approx(stats.ttest_ind([0.55, 0.8], [0.2, 0.35, 0.4]).pvalue)
    random = SeededFigures(np.array([0.1, 0.3, 0.2, 0.15]), None)
    welch = stats.ttest_ind([0.55, 0.8], random.values, equal_var=False).pvalue
    assert p_over_seeds(first, random) == pytest.approx(welch) == p_over_seeds(random, first)


def test_means_that_lie_close_by_chance_are_no_more_certain_than_their_trials() -> None:
    close = SeededFigures(np.array([0.4, 0.4, 0.8, 0.8]), np.array([0, 1, 0, 1]))  # both 0.6, trials ± 0.2
    random = SeededFigures(np.array([0.3, 0.5, 0.4, 0.45]), None)
    within = 2 * 2 * 0.2**2 / 2 / 2  # squares over degrees of freedom, of means of two trials
    moments = (random.values.mean(), random.values.std(ddof=1), 4)
    expected = stats.ttest_ind_from_stats(0.6, within**0.5, 2, *moments, equal_var=False).pvalue
    assert p_over_seeds(close, random) == pytest.approx(expected)


def test_one_pretraining_or_no_spread_is_no_test() -> None:
    one = SeededFigures(np.array([0.5, 0.6]), np.array([0, 0]))
    two = SeededFigures(np.array([0.5, 0.6]), np.array([0, 1]))
    random = SeededFigures(np.array([0.5, 0.7]), None)
    assert {p_over_seeds(*pair) for pair in ((one, two), (two, one), (one, random), (random, random))} == {None}
    same = SeededFigures(np.array([0.5, 0.5]), np.array([0, 1]))
    assert p_over_seeds(same, replace(same, values=same.values + 0.1)) is None


def test_rows_say_how_many_pretrainings_and_correct_their_p_by_holm() -> None:
    generator = np.random.default_rng(3)

    def with_sources(mean: float, num: int) -> list:
        drawn = trials(list(generator.normal(mean, 0.05, 6)))
        return [replace(trial, source=trial.trial % num) for trial in drawn]

    results = {"random": with_sources(0.5, 1), "a": with_sources(0.6, 2), "b": with_sources(0.7, 3),
        "given": with_sources(0.6, 1)}  # fmt: skip
    rows = {
        row.initialisation: row
        for row in compare_initialisations(results, "segmentation", 5, dict.fromkeys(results, "random"))
    }
    assert [row.pretrainings for row in rows.values()] == [0, 2, 3, 1]
    values = {name: np.array([trial.figures["dice"] for trial in each]) for name, each in results.items()}
    expected = [
        p_over_seeds(SeededFigures(values[name], np.arange(6) % num), SeededFigures(values["random"], None))
        for name, num in (("a", 2), ("b", 3))
    ]
    against = [rows[name].against_random for name in ("a", "b")]
    assert [each.p_seeds for each in against] == expected
    low, high = sorted(expected)
    assert sorted(each.p_seeds_holm for each in against) == pytest.approx([min(1, 2 * low), min(1, max(2 * low, high))])
    assert rows["given"].against_random.p_seeds is None and rows["given"].against_random.p_seeds_holm is None
