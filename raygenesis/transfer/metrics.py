"""How well a target task is done: figures of a trial, and what each test case tells for tests by subject.

A case of a segmentation counts voxels of each class; Dice and IoU are of the foreground classes, background left out:
`dice`, `iou` are each case's mean over classes, averaged over cases (a class that is in neither map counts 1, one that
is in one of them only 0); `dice_pooled`, `iou_pooled` are of the voxels of all cases together, averaged over classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from raygenesis.transfer.examples import CLASSIFICATION, MULTILABEL, REGRESSION, SEGMENTATION

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Primary:
    """The figure by which initialisations are compared. sign: 1 where more is better, -1 where less is. All are at
    least 0 and at most `most`."""

    name: str
    words: str
    sign: int
    most: float = 1.0


PRIMARY = {
    SEGMENTATION: Primary("dice", "Dice", 1),
    CLASSIFICATION: Primary("auc", "AUC", 1),
    MULTILABEL: Primary("auc", "mean AUC", 1),
    REGRESSION: Primary("mae", "mean absolute error", -1, math.inf),
}
# Of names that two tasks have, the first's words.
WORDS = {"iou": "IoU"} | {primary.name: primary.words for primary in reversed(PRIMARY.values())}


def overlap(predicted: NDArray[np.uint8], label: NDArray[np.uint8], num_classes: int) -> dict[str, Any]:
    """Of one case: Dice and IoU, each class's and their mean, and the voxels in both maps and in either, by class."""
    labelled, found = (np.bincount(classes.ravel(), minlength=num_classes)[1:] for classes in (label, predicted))
    both = np.bincount(label[predicted == label], minlength=num_classes)[1:]
    dice, iou = _of_counts(both, found, labelled)
    return {
        "dice": float(dice.mean()), "iou": float(iou.mean()), "dice_per_class": dice.tolist(),
        "iou_per_class": iou.tolist(), "voxels_both": both.tolist(), "voxels_predicted": found.tolist(),
        "voxels_labelled": labelled.tolist(),
    }  # fmt: skip


def figures(task: str, tested: Sequence[Row]) -> dict[str, float]:
    """The figures of a trial, the primary one first, from its test cases.

    Cases of a segmentation as `overlap` tells them; others have a `value` and an `answer`: a number, or a probability
    for each class.
    """
    if task == SEGMENTATION:
        return _of_overlaps(tested)
    values = np.array([case["value"] for case in tested])
    answers = np.array([case["answer"] for case in tested], np.float64)
    if task == REGRESSION:
        return {
            "mae": float(np.abs(answers - values).mean()), "rmse": float(np.sqrt(np.square(answers - values).mean())),
            "r2": float(metrics.r2_score(values, answers)), "correlation": correlation(values, answers),
        }  # fmt: skip
    if task == MULTILABEL:
        of_each = aucs_of(values, answers)
        return {"auc": float(np.nanmean(of_each)), "auc_worst": float(np.nanmin(of_each))}
    chosen = answers.argmax(1)
    return {
        "auc": float(np.nanmean(aucs_of(values, answers))), "accuracy": float((chosen == values).mean()),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(values, chosen)),
    }  # fmt: skip


@dataclass(frozen=True)
class CaseScores:
    """What trials say of each test case on average, for tests over subjects.

    subjects: whose the cases are. told: of a segmentation the Dice, of a regression the absolute error, whose mean over
    cases is the primary figure; of a classification the answers [cases, classes], whose AUC is, with the true `values`.
    """

    subjects: tuple[str, ...]
    told: NDArray[np.float64]
    values: NDArray[Any] | None


def case_scores(task: str, trials: Sequence[Sequence[Row]]) -> CaseScores:
    """The mean of trials that share their test cases."""
    tell = {SEGMENTATION: lambda case: case["dice"], REGRESSION: lambda case: abs(case["answer"] - case["value"])}
    mean = np.mean([[tell.get(task, lambda case: case["answer"])(case) for case in cases] for cases in trials], 0)
    values = np.array([case["value"] for case in trials[0]]) if task in (CLASSIFICATION, MULTILABEL) else None
    return CaseScores(tuple(case["subject"] for case in trials[0]), mean, values)


def positives(values: NDArray[Any], num_classes: int) -> dict[int, NDArray[np.bool_]]:
    """Which cases are of a class, of every class whose AUC counts: of two classes the second's.

    values: [n] numbers of classes, or [n, num_classes] of 0 and 1.
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
    """Pearson's; 0 where nothing varies."""
    if np.ptp(answers) == 0 or np.ptp(values) == 0:
        return 0.0
    return float(stats.pearsonr(values, answers).statistic)


def _of_counts(
    both: NDArray[np.int64], predicted: NDArray[np.int64], labelled: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dice and IoU of each class; a class that is nowhere, and found nowhere, is found perfectly."""
    total = predicted + labelled
    dice = np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)
    return dice, np.where(total > 0, both / np.maximum(total - both, 1), 1.0)


def _of_overlaps(tested: Sequence[Row]) -> dict[str, float]:
    names = ("voxels_both", "voxels_predicted", "voxels_labelled")
    dice, iou = _of_counts(*(np.sum([case[name] for case in tested], 0) for name in names))
    return {
        "dice": float(np.mean([case["dice"] for case in tested])),
        "iou": float(np.mean([case["iou"] for case in tested])),
        "dice_pooled": float(dice.mean()), "iou_pooled": float(iou.mean()),
    }  # fmt: skip
