"""The table's numbers, against SciPy, the textbook's formulas and counting."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import roc_auc_score

from raygenesis.transfer.metrics import CaseScores
from raygenesis.transfer.statistics import (
    Comparison,
    Difference,
    aucs,
    compare_initialisations,
    holm,
    paired_by_subject,
)
from tests.support.trials import OTHERS, OURS, THEIRS, hedges, segmented, trials

RANDOMS = dict.fromkeys(("ours", "others", "theirs", "random"), "random")


def scores(answers: np.ndarray, values: np.ndarray | None = None, subjects: list[str] | None = None) -> CaseScores:
    return CaseScores(tuple(subjects or [f"s{n}" for n in range(len(answers))]), answers, values)


def table(task: str = "segmentation", metric: str = "dice", **results: list[float]) -> dict[str, Comparison]:
    rows = compare_initialisations(
        {name: trials(figures, metric) for name, figures in results.items()}, task, 5, RANDOMS
    )
    return {row.initialisation: row for row in rows}


def test_means_deviations_and_intervals() -> None:
    rows = table(random=THEIRS, ours=OURS)
    assert list(rows) == ["random", "ours"]
    row = rows["random"]
    assert (row.trials, row.labelled, row.metric) == (4, 5, "dice")
    assert row.mean == pytest.approx(0.61)
    assert row.sd == pytest.approx(math.sqrt((0.01**2 + 0.09**2 + 0.11**2 + 0.03**2) / 3))
    interval = stats.t.interval(0.95, 3, loc=np.mean(THEIRS), scale=stats.sem(THEIRS))
    assert (row.low, row.high) == pytest.approx(interval)
    assert row.seconds_per_trial == pytest.approx(4.5) and row.epochs_to_converge == pytest.approx(15)
    assert row.figures == pytest.approx({"dice": 0.61, "iou": 0.305})


def test_what_is_never_trained_has_no_time_to_converge() -> None:
    never = [replace(trial, epochs_to_converge=None, seconds_to_converge=None) for trial in trials(OURS)]
    (row,) = compare_initialisations({"ours": never}, "segmentation", 5, RANDOMS)
    assert row.epochs_to_converge is None and row.seconds_to_converge is None


def test_tests_over_trials_are_welchs_with_hedges_g() -> None:
    rows = table(random=THEIRS, ours=OURS, others=OTHERS)
    for name, figures in (("ours", OURS), ("others", OTHERS)):
        against = rows[name].against_random
        assert against.difference == pytest.approx(np.mean(figures) - np.mean(THEIRS))
        assert against.p == pytest.approx(stats.ttest_ind(figures, THEIRS, equal_var=False).pvalue)
        assert against.effect_size == pytest.approx(hedges(figures, THEIRS))
    ps = [rows[name].against_random.p for name in ("ours", "others")]
    assert sorted(rows[name].against_random.p_holm for name in ("ours", "others")) == pytest.approx(
        [2 * min(ps), max(2 * min(ps), max(ps))]
    )
    assert rows["random"].against_random is None and rows["ours"].against_best is None
    assert rows["others"].against_best.p == pytest.approx(stats.ttest_ind(OTHERS, OURS, equal_var=False).pvalue)


def test_the_best_is_marked_with_those_that_cannot_be_told_from_it() -> None:
    rows = table(random=THEIRS, ours=OURS, others=OTHERS)
    assert [rows[name].is_best for name in rows] == [False, True, False]
    assert [rows[name].is_like_best for name in rows] == [True, True, False]


def test_of_an_error_less_is_better() -> None:
    rows = table("regression", "mae", random=OURS, ours=THEIRS)
    assert rows["ours"].is_best and not rows["random"].is_best
    assert rows["ours"].against_random.difference == pytest.approx(np.mean(OURS) - np.mean(THEIRS))
    assert rows["ours"].against_random.effect_size == pytest.approx(hedges(OURS, THEIRS))


def test_without_spread_there_is_no_test_rather_than_certainty() -> None:
    rows = table(random=[0.5, 0.5], ours=[0.6, 0.6], same=[0.6, 0.6])
    assert rows["ours"].against_random.difference == pytest.approx(0.1)
    assert rows["ours"].against_random.p is None and rows["ours"].against_random.effect_size is None
    assert rows["same"].is_like_best and not rows["random"].is_like_best
    one_sided = table(random=[0.5, 0.5, 0.5], ours=[0.6, 0.7, 0.5])["ours"].against_random
    assert one_sided.p == pytest.approx(stats.ttest_ind([0.6, 0.7, 0.5], [0.5] * 3, equal_var=False).pvalue)


def test_without_random_weights_nothing_is_compared_with_them() -> None:
    rows = table(ours=OURS, others=OTHERS)
    assert {row.against_random for row in rows.values()} == {None}
    assert rows["ours"].as_row()["p_against_random"] is None


def test_a_row_is_flat() -> None:
    row = table(random=THEIRS, ours=OURS)["random"].as_row()
    assert row["difference_against_best"] == pytest.approx(-0.06) and row["difference_against_random"] is None
    assert row["mean_iou"] == pytest.approx(0.305)
    assert all(value is None or isinstance(value, (str, int, float)) for value in row.values())


def test_a_row_holds_all_of_its_comparison() -> None:
    for row in table(random=THEIRS, ours=OURS, others=OTHERS).values():
        assert Comparison.from_row(json.loads(json.dumps(row.as_row()))) == row


@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_holm_is_the_least_level_at_which_its_steps_reject(p_values: list[float | None]) -> None:
    def rejected(level: float) -> set[int]:
        found, order = set(), sorted((p, number) for number, p in enumerate(p_values) if p is not None)
        for rank, (p, number) in enumerate(order):
            if p * (len(order) - rank) > level:
                break
            found.add(number)
        return found

    for number, corrected in enumerate(holm(p_values)):
        assert (corrected is None) == (p_values[number] is None)
        if corrected is not None:
            assert p_values[number] <= corrected <= 1
            assert number in rejected(corrected) or corrected == 1
            assert number not in rejected(corrected - 1e-9)


def exhaustive(first: np.ndarray, second: np.ndarray, statistic: Any) -> float:
    """p over all exchanges."""
    observed = abs(statistic(first) - statistic(second))
    found = []
    for swaps in itertools.product([False, True], repeat=len(first)):
        mask = np.array(swaps).reshape(-1, *[1] * (first.ndim - 1))
        found.append(abs(statistic(np.where(mask, second, first)) - statistic(np.where(mask, first, second))))
    return float(np.mean(np.array(found) >= observed - 1e-9))


def about(p: float) -> Any:
    """Within five standard errors of what 9999 draws tell."""
    return pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 9999) + 1e-4)


def test_means_are_compared_over_subjects_as_scipy_permutes() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.7, 0.1, 9), generator.normal(0.65, 0.1, 9)
    theirs = stats.permutation_test(
        (first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis), permutation_type="samples", n_resamples=np.inf,
        vectorized=True,
    ).pvalue  # fmt: skip
    assert exhaustive(first, second, np.mean) == pytest.approx(theirs)
    assert paired_by_subject(scores(first), scores(second)) == about(theirs)


def test_all_cases_of_a_subject_are_exchanged_together() -> None:
    generator = np.random.default_rng(4)
    of_subject = generator.normal(0.05, 0.1, 6)  # cases of a subject are alike
    first, second = 0.7 + np.repeat(of_subject, 5), np.full(30, 0.7)
    subjects = [f"s{n}" for n in range(6) for _ in range(5)]
    together = exhaustive(of_subject, np.zeros(6), np.mean)
    assert paired_by_subject(scores(first, subjects=subjects), scores(second, subjects=subjects)) == about(together)
    assert paired_by_subject(scores(first), scores(second)) < together / 2


def test_the_scale_of_answers_does_not_matter_to_aucs() -> None:
    generator = np.random.default_rng(5)
    values = np.arange(40) % 2
    first, second = (generator.random(40) + weight * values for weight in (0.8, 0.1))
    both = [np.stack([-answers, answers], 1) for answers in (first, second, 1000 + np.exp(3 * second))]
    plain, shifted = (paired_by_subject(scores(both[0], values), scores(other, values)) for other in both[1:])
    assert plain == shifted < 0.05


@pytest.mark.parametrize("kind", ["two classes", "three classes", "several at once"])
def test_aucs_are_compared_over_subjects_as_all_exchanges_do(kind: str) -> None:
    generator = np.random.default_rng(3)
    values = {
        "two classes": np.arange(8) % 2, "three classes": np.arange(8) % 3,
        "several at once": generator.integers(0, 2, (8, 3)),
    }[kind]  # fmt: skip
    num = {"two classes": 2}.get(kind, 3)
    each = [values[:, n] for n in range(num)] if values.ndim == 2 else [values == n for n in range(num)]
    wanted = np.stack(each, 1)
    first = generator.random((8, num)) + 0.5 * wanted
    second = generator.random((8, num))
    if num == 2:
        first, second = (np.stack([-a[:, 1], a[:, 1]], 1) for a in (first, second))

    def mean_auc(answers: np.ndarray) -> float:
        return roc_auc_score(wanted, answers, average="macro")

    ranks = (stats.rankdata(answers, axis=0) for answers in (first, second))
    assert paired_by_subject(scores(first, values), scores(second, values)) == about(exhaustive(*ranks, mean_auc))


def test_subjects_who_differ_always_alike_leave_the_least_p() -> None:
    first = np.full(12, 0.8)
    assert paired_by_subject(scores(first), scores(first - 0.1)) == about(2 / 2**12)
    assert paired_by_subject(scores(first), scores(first - 0.1)) >= 1 / 9999
    assert paired_by_subject(scores(first), scores(first.copy())) is None


def test_over_subjects_it_is_what_trials_say_on_average() -> None:
    generator = np.random.default_rng(1)
    dice = {name: generator.normal(mean, 0.05, (3, 8)) for name, mean in (("random", 0.6), ("ours", 0.66))}
    results = {
        name: [trials([row.mean()], test=[segmented(f"s{n}", value) for n, value in enumerate(row)])[0] for row in rows]
        for name, rows in dice.items()
    }
    ours = compare_initialisations(results, "segmentation", 5, RANDOMS)[1]
    assert ours.against_random.p_subjects == about(exhaustive(dice["ours"].mean(0), dice["random"].mean(0), np.mean))


@given(arrays(float, (3, 9), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75])), st.data())
@settings(deadline=None)
def test_aucs_count_pairs_and_ties_half(answers: np.ndarray, data: st.DataObject) -> None:
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=9, max_size=9).filter(lambda p: 0 < sum(p) < 9)))
    for row, found in zip(answers, aucs(positive, stats.rankdata(answers, axis=1)), strict=True):
        pairs = [np.sign(a - b) / 2 + 0.5 for a in row[positive] for b in row[~positive]]
        assert found == pytest.approx(np.mean(pairs)) == pytest.approx(roc_auc_score(positive, row))


def test_a_comparison_without_p_is_corrected_to_none() -> None:
    assert holm([0.02, None, 0.03]) == pytest.approx([0.04, None, 0.04])
    assert Difference(0.0, None, None, None).p_holm is None
