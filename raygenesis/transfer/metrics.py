"""Figures of merit of a target task: those of one test case, and those of all test cases of a trial.

A case of a segmentation counts voxels of each class; Dice and IoU are of the foreground classes, background left out:
`dice`, `iou` are each case's mean over classes, averaged over cases (a class that is in neither map counts 1, one that
is in one of them only 0); `dice_pooled`, `iou_pooled` are of the voxels of all cases together, averaged over classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from raygenesis.transfer.examples import CLASSIFICATION, MULTILABEL, REGRESSION, SEGMENTATION, Value

# What a network answers about a case: a number, or a probability for each class.
Answer: TypeAlias = float | list[float]


@dataclass(frozen=True)
class Overlap:
    """Agreement of a predicted label map with the true one, over the foreground classes.

    dice, iou: means over classes; those per class, and the voxels in both maps, in the predicted and in the true one,
    are in the order of the classes.
    """

    dice: float
    iou: float
    dice_per_class: list[float]
    iou_per_class: list[float]
    voxels_both: list[int]
    voxels_predicted: list[int]
    voxels_labelled: list[int]


@dataclass(frozen=True)
class CaseResult:
    """A test case by the example's name and its subject."""

    name: str
    subject: str


@dataclass(frozen=True)
class SegmentedCase(Overlap, CaseResult):
    """A test case of a segmentation."""


@dataclass(frozen=True)
class AnsweredCase(CaseResult):
    """A test case of a classification or a regression: the true value, and the network's answer."""

    value: Value
    answer: Answer


# The test cases of a trial, all of one kind.
CaseResults: TypeAlias = Sequence[SegmentedCase] | Sequence[AnsweredCase]


@dataclass(frozen=True)
class Primary:
    """The figure by which initialisations are compared.

    title: what tables call it. sign: 1 where more is better, -1 where less is. All are at least 0 and at most `most`.
    """

    name: str
    title: str
    sign: int
    most: float = 1.0


PRIMARY = {
    SEGMENTATION: Primary("dice", "Dice", 1),
    CLASSIFICATION: Primary("auc", "AUC", 1),
    MULTILABEL: Primary("auc", "mean AUC", 1),
    REGRESSION: Primary("mae", "mean absolute error", -1, math.inf),
}
# What tables call a figure, by its name; of a name that two tasks have, the first's title.
TITLES = {"iou": "IoU"} | {primary.name: primary.title for primary in reversed(PRIMARY.values())}


def overlap(predicted: NDArray[np.uint8], label: NDArray[np.uint8], num_classes: int) -> Overlap:
    """Compare two label maps of one shape; num_classes: background included."""
    labelled, found = (np.bincount(classes.ravel(), minlength=num_classes)[1:] for classes in (label, predicted))
    both = np.bincount(label[predicted == label], minlength=num_classes)[1:]
    dice, iou = _dice_and_iou(both, found, labelled)
    return Overlap(
        float(dice.mean()), float(iou.mean()), dice.tolist(), iou.tolist(), both.tolist(), found.tolist(),
        labelled.tolist(),
    )  # fmt: skip


def figures(task: str, tested: CaseResults) -> dict[str, float]:
    """The figures of a trial by name, the primary one first.

    tested: SegmentedCases of a segmentation, AnsweredCases of the other tasks.
    """
    if task == SEGMENTATION:
        return _of_overlaps([case for case in tested if isinstance(case, SegmentedCase)])
    answered = [case for case in tested if isinstance(case, AnsweredCase)]
    values = np.array([case.value for case in answered])
    answers = np.array([case.answer for case in answered], np.float64)
    if task == REGRESSION:
        return {
            "mae": float(np.abs(answers - values).mean()), "rmse": float(np.sqrt(np.square(answers - values).mean())),
            "r2": float(metrics.r2_score(values, answers)), "correlation": correlation(values, answers),
        }  # fmt: skip
    if task == MULTILABEL:
        auc_per_class = aucs_of(values, answers)
        return {"auc": float(np.nanmean(auc_per_class)), "auc_worst": float(np.nanmin(auc_per_class))}
    chosen = answers.argmax(1)
    return {
        "auc": float(np.nanmean(aucs_of(values, answers))), "accuracy": float((chosen == values).mean()),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(values, chosen)),
    }  # fmt: skip


@dataclass(frozen=True)
class CaseScores:
    """Scores of each test case, averaged over trials, for tests over subjects.

    subjects: whose the cases are. scores: of a segmentation the Dice [cases], of a regression the absolute error
    [cases], whose mean over cases is the primary figure; of a classification the answers [cases, classes], whose AUC
    is, with the true `values`.
    """

    subjects: tuple[str, ...]
    scores: NDArray[np.float64]
    values: NDArray[Any] | None


def case_scores(task: str, trials: Sequence[CaseResults]) -> CaseScores:
    """The mean over trials that share their test cases; trials: the test cases of each."""
    mean = np.mean([[_score(task, case) for case in cases] for cases in trials], 0)
    values = None
    if task in (CLASSIFICATION, MULTILABEL):
        values = np.array([case.value for case in trials[0] if isinstance(case, AnsweredCase)])
    return CaseScores(tuple(case.subject for case in trials[0]), mean, values)


def _score(task: str, case: SegmentedCase | AnsweredCase) -> Answer:
    if isinstance(case, SegmentedCase):
        return case.dice
    if task != REGRESSION:
        return case.answer
    assert isinstance(case.answer, int | float) and isinstance(case.value, int | float)
    return abs(case.answer - case.value)


def positives(values: NDArray[Any], num_classes: int) -> dict[int, NDArray[np.bool_]]:
    """Which cases are of a class, for every class whose AUC counts: of two classes the second only.

    values: [n] numbers of classes, or [n, num_classes] of 0 and 1. Returns masks [n] by the class's number.
    """
    if values.ndim == 2:
        return {number: values[:, number] > 0 for number in range(num_classes)}
    numbers = [1] if num_classes == 2 else range(num_classes)
    return {number: values == number for number in numbers}


def aucs_of(values: NDArray[Any], answers: NDArray[np.float64]) -> list[float]:
    """Areas under the ROC curves of `positives`; NaN where all cases are of a class, or none is."""
    return [
        float(metrics.roc_auc_score(positive, answers[:, number])) if 0 < positive.sum() < len(positive) else math.nan
        for number, positive in positives(values, answers.shape[1]).items()
    ]


def correlation(values: NDArray[np.float64], answers: NDArray[np.float64]) -> float:
    """Pearson's correlation coefficient; 0 where one of both does not vary."""
    if np.ptp(answers) == 0 or np.ptp(values) == 0:
        return 0.0
    return float(stats.pearsonr(values, answers).statistic)


def _dice_and_iou(
    both: NDArray[np.int64], predicted: NDArray[np.int64], labelled: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dice and IoU of each class from numbers of voxels; both are 1 for a class that is in neither map."""
    total = predicted + labelled
    dice = np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)
    return dice, np.where(total > 0, both / np.maximum(total - both, 1), 1.0)


def _of_overlaps(tested: Sequence[SegmentedCase]) -> dict[str, float]:
    dice, iou = _dice_and_iou(
        np.sum([case.voxels_both for case in tested], 0), np.sum([case.voxels_predicted for case in tested], 0),
        np.sum([case.voxels_labelled for case in tested], 0),
    )  # fmt: skip
    return {
        "dice": float(np.mean([case.dice for case in tested])), "iou": float(np.mean([case.iou for case in tested])),
        "dice_pooled": float(dice.mean()), "iou_pooled": float(iou.mean()),
    }  # fmt: skip
