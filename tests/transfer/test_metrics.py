"""Figures, against counting and scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice, compute_iou
from monai.networks.utils import one_hot
from sklearn import metrics

from raygenesis.transfer.metrics import (
    PRIMARY,
    AnsweredCase,
    Overlap,
    SegmentedCase,
    case_scores,
    figures,
    overlap,
    positives,
)

MAPS = arrays(np.uint8, (4, 5), elements=st.integers(0, 2))


def answered(values: Any, answers: Any) -> list[AnsweredCase]:
    pairs = enumerate(zip(values, answers, strict=True))
    return [AnsweredCase(f"c{n}", f"s{n}", value, answer) for n, (value, answer) in pairs]


def segmented(found: Overlap, name: str = "c", subject: str = "s") -> SegmentedCase:
    return SegmentedCase(name, subject, **vars(found))


def dice_and_iou(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    both, either = (first & second).sum(), (first | second).sum()
    return (2 * both / (first.sum() + second.sum()), both / either) if either else (1.0, 1.0)


def test_a_case_against_counting() -> None:
    label = np.array([[0, 1, 1, 1], [0, 0, 2, 2]], np.uint8)
    predicted = np.array([[1, 1, 1, 0], [0, 0, 2, 0]], np.uint8)
    found = overlap(predicted, label, 3)
    assert found.dice_per_class == pytest.approx([2 * 2 / (3 + 3), 2 * 1 / (2 + 1)])
    assert found.iou_per_class == pytest.approx([2 / 4, 1 / 2])
    assert found.dice == pytest.approx(2 / 3) and found.iou == pytest.approx(0.5)
    assert found.voxels_both == [2, 1] and found.voxels_predicted == [3, 1]
    assert found.voxels_labelled == [3, 2]


@given(st.lists(st.tuples(MAPS, MAPS), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_figures_of_a_segmentation_per_case_and_pooled(maps: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = figures("segmentation", [segmented(overlap(predicted, label, 3)) for predicted, label in maps])
    each = np.array([[dice_and_iou(p == number, m == number) for number in (1, 2)] for p, m in maps])
    assert (found["dice"], found["iou"]) == pytest.approx(tuple(each.mean((0, 1))))
    joined = [np.stack(side) for side in zip(*maps, strict=True)]
    pooled = np.array([dice_and_iou(*(side == number for side in joined)) for number in (1, 2)])
    assert (found["dice_pooled"], found["iou_pooled"]) == pytest.approx(tuple(pooled.mean(0)))


def test_a_class_that_is_not_there_scores_one_unless_it_is_predicted() -> None:
    label = np.array([[0, 1, 1, 0]], np.uint8)
    assert overlap(label, label, 3).dice_per_class == overlap(label, label, 3).iou_per_class == [1, 1]
    wrong = np.array([[2, 1, 1, 0]], np.uint8)
    assert overlap(wrong, label, 3).dice_per_class == overlap(wrong, label, 3).iou_per_class == [1, 0]


def test_figures_of_two_classes() -> None:
    values, second = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.6, 0.3, 0.6, 0.9])
    found = figures("classification", answered(values.tolist(), np.stack([1 - second, second], 1).tolist()))
    assert found["auc"] == pytest.approx(5.5 / 6)  # pairs that are in order, ties half
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_figures_of_three_classes_are_means_over_one_against_the_rest() -> None:
    generator = np.random.default_rng(0)
    values = np.arange(30) % 3
    answers = generator.dirichlet(np.ones(3), 30)
    found = figures("classification", answered(values.tolist(), answers.tolist()))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(values, answers, multi_class="ovr"))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(values, answers.argmax(1)))


def test_figures_of_several_findings_leave_out_one_that_nobody_has() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2, (20, 3))
    values[:, 2] = 0
    answers = generator.random((20, 3))
    found = figures("multilabel", answered(values.tolist(), answers.tolist()))
    each = [metrics.roc_auc_score(values[:, number], answers[:, number]) for number in (0, 1)]
    assert found["auc"] == pytest.approx(np.mean(each)) and found["auc_worst"] == pytest.approx(min(each))


def test_figures_of_a_regression() -> None:
    values, answers = np.array([1.0, 2.0, 4.0, 5.0]), np.array([1.5, 2.0, 3.0, 6.0])
    found = figures("regression", answered(values.tolist(), answers.tolist()))
    assert found["mae"] == pytest.approx(2.5 / 4) and found["rmse"] == pytest.approx((2.25 / 4) ** 0.5)
    assert found["r2"] == pytest.approx(1 - 2.25 / 10)
    assert found["correlation"] == pytest.approx(np.corrcoef(values, answers)[0, 1])


def test_answers_that_never_change_correlate_with_nothing() -> None:
    assert figures("regression", answered([1.0, 2.0], [3.0, 3.0]))["correlation"] == 0


@pytest.mark.parametrize("task", PRIMARY)
def test_the_primary_figure_comes_first(task: str) -> None:
    row = overlap(np.ones((2, 2), np.uint8), np.ones((2, 2), np.uint8), 2)
    values, answers = {
        "classification": ([0, 1], [[0.6, 0.4], [0.3, 0.7]]), "multilabel": ([(0, 1), (1, 0)], [[0.6, 0.4], [0.3, 0.7]])
    }.get(task, ([0.0, 1.0], [0.0, 1.0]))  # fmt: skip
    tested = [segmented(row)] if task == "segmentation" else answered(values, answers)
    assert next(iter(figures(task, tested))) == PRIMARY[task].name


def test_overlap_is_monais() -> None:
    generator = np.random.default_rng(0)
    predicted, label = generator.integers(0, 4, (2, 6, 5, 4)).astype(np.uint8)
    masks = [one_hot(torch.tensor(classes)[None, None].long(), 4) for classes in (predicted, label)]
    found = overlap(predicted, label, 4)
    for name, compute in (("dice", compute_dice), ("iou", compute_iou)):
        assert getattr(found, f"{name}_per_class") == pytest.approx(
            compute(*masks, include_background=False)[0].tolist()
        )


def test_of_a_segmentation_each_case_tells_its_mean_dice() -> None:
    any_overlap = overlap(np.ones((2, 2), np.uint8), np.ones((2, 2), np.uint8), 2)
    tested = [
        segmented(replace(any_overlap, dice=dice), f"{s}{n}", s)
        for n, (s, dice) in enumerate([("b", 0.2), ("a", 0.5), ("b", 0.4)])
    ]
    found = case_scores("segmentation", [tested, [replace(case, dice=1.0) for case in tested]])
    assert (
        found.subjects == ("b", "a", "b") and found.scores == pytest.approx([0.6, 0.75, 0.7]) and found.values is None
    )


def test_of_a_regression_each_trial_tells_its_own_error() -> None:
    trials = [answered([1.0, 2.0], answers) for answers in ([0.0, 2.0], [2.0, 4.0])]
    found = case_scores("regression", trials)
    assert found.scores == pytest.approx([1.0, 1.0]) and found.values is None  # mean of errors, not error of means


def test_of_a_classification_trials_tell_their_mean_answers() -> None:
    tested = [answered([0, 1], [[0.5, 0.5], [x, 1 - x]]) for x in (0.1, 0.3)]
    found = case_scores("classification", tested)
    assert found.scores == pytest.approx(np.array([[0.5, 0.5], [0.2, 0.8]])) and found.values.tolist() == [0, 1]
    assert {n: p.tolist() for n, p in positives(found.values, 2).items()} == {1: [False, True]}
    assert list(positives(np.array([0, 1, 2]), 3)) == [0, 1, 2]
