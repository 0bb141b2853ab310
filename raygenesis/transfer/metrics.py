"""How well a target task is done: figures of a trial, and what each test case tells for tests by subject.

A case of a segmentation counts voxels of each class; Dice and IoU are of the foreground classes, background left out:
`dice`, `iou` are each case's mean over classes, averaged over cases (a class that is in neither map counts 1, one that
is in one of them only 0); `dice_pooled`, `iou_pooled` are of the voxels of all cases together, averaged over classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice, compute_iou
from monai.networks.utils import one_hot
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from raygenesis.transfer.examples import CLASSIFICATION, MULTILABEL, REGRESSION, SEGMENTATION

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Primary:
    """The figure by which initialisations are compared. sign: 1 where more is better, -1 where less is."""

    name: str
    words: str
    sign: int


PRIMARY = {
    SEGMENTATION: Primary("dice", "Dice", 1),
    CLASSIFICATION: Primary("auc", "AUC", 1),
    MULTILABEL: Primary("auc", "mean AUC", 1),
    REGRESSION: Primary("mae", "mean absolute error", -1),
}


def overlap(predicted: NDArray[np.uint8], label: NDArray[np.uint8], num_classes: int) -> dict[str, Any]:
    """Of one case: Dice and IoU, each class's and their mean, and the voxels in both maps and in either, by class."""
    masks = [one_hot(torch.tensor(classes)[None, None].long(), num_classes) for classes in (predicted, label)]
    dice = compute_dice(*masks, include_background=False, ignore_empty=False)[0].tolist()
    iou = compute_iou(*masks, include_background=False, ignore_empty=False)[0].tolist()
    numbers = range(1, num_classes)
    counts = {
        "voxels_both": [int(((predicted == number) & (label == number)).sum()) for number in numbers],
        "voxels_predicted": [int((predicted == number).sum()) for number in numbers],
        "voxels_labelled": [int((label == number).sum()) for number in numbers],
    }
    return {
        "dice": float(np.mean(dice)),
        "iou": float(np.mean(iou)),
        "dice_per_class": dice,
        "iou_per_class": iou,
    } | counts


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
        of_each = [auc_of(values[:, number] > 0, answers[:, number]) for number in range(values.shape[1])]
        return {"auc": float(np.nanmean(of_each)), "auc_worst": float(np.nanmin(of_each))}
    chosen = answers.argmax(1)
    return {
        "auc": _auc(values, answers), "accuracy": float((chosen == values).mean()),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(values, chosen)),
    }  # fmt: skip


def of_subjects(
    task: str, trials: Sequence[Sequence[Row]]
) -> tuple[list[str], NDArray[np.float64], NDArray[Any] | None]:
    """What trials say of each subject on average, for tests by subject: names, [subjects, ...] and their true values.

    Of a segmentation the Dice, of a regression the absolute error (values None: their mean is the primary figure); of
    a classification the answers, whose AUC is the primary figure. Subjects with several cases have their mean; where
    the classes of those differ each case counts as a subject.
    """
    first = trials[0]
    several = {}
    for case in first:
        several.setdefault(case["subject"], set()).add(str(case.get("value")))
    mixed = task in (CLASSIFICATION, MULTILABEL) and any(len(values) > 1 for values in several.values())
    keys = [case["name" if mixed else "subject"] for case in first]
    tell = {SEGMENTATION: lambda case: case["dice"], REGRESSION: lambda case: abs(case["answer"] - case["value"])}
    told = np.mean([[tell.get(task, lambda case: case["answer"])(case) for case in cases] for cases in trials], 0)
    names = sorted(set(keys))
    rows = [[number for number, key in enumerate(keys) if key == name] for name in names]
    values = None
    if task in (CLASSIFICATION, MULTILABEL):
        values = np.array([first[of[0]]["value"] for of in rows])
    return names, np.array([told[of].mean(0) for of in rows]), values


def auc_of(positive: NDArray[np.bool_], answers: NDArray[np.float64]) -> float:
    """Area under the ROC curve; NaN where a class is missing."""
    if positive.all() or not positive.any():
        return float("nan")
    return float(metrics.roc_auc_score(positive, answers))


def mean_auc(values: NDArray[Any], answers: NDArray[np.float64]) -> float:
    """The primary figure of a classification: values [n] (classes) or [n, classes] (0 and 1), answers [n, classes]."""
    if values.ndim == 2:
        return float(
            np.nanmean([auc_of(values[:, number] > 0, answers[:, number]) for number in range(values.shape[1])])
        )
    return _auc(values, answers)


def correlation(values: NDArray[np.float64], answers: NDArray[np.float64]) -> float:
    """Pearson's; 0 where nothing varies."""
    if np.ptp(answers) == 0 or np.ptp(values) == 0:
        return 0.0
    return float(stats.pearsonr(values, answers).statistic)


def _auc(values: NDArray[np.int64], answers: NDArray[np.float64]) -> float:
    """Of two classes the second's; of more the mean over one class against the rest."""
    if answers.shape[1] == 2:
        return auc_of(values == 1, answers[:, 1])
    return float(np.nanmean([auc_of(values == number, answers[:, number]) for number in range(answers.shape[1])]))


def _of_overlaps(tested: Sequence[Row]) -> dict[str, float]:
    both, predicted, labelled = (
        np.sum([case[key] for case in tested], 0) for key in ("voxels_both", "voxels_predicted", "voxels_labelled")
    )
    total = predicted + labelled
    # A class that is nowhere, and found nowhere, is found perfectly.
    dice = np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)
    iou = np.where(total > 0, both / np.maximum(total - both, 1), 1.0)
    return {
        "dice": float(np.mean([case["dice"] for case in tested])),
        "iou": float(np.mean([case["iou"] for case in tested])),
        "dice_pooled": float(dice.mean()), "iou_pooled": float(iou.mean()),
    }  # fmt: skip
