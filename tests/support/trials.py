"""Trials and comparisons made of numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from raygenesis.transfer.metrics import AnsweredCase, SegmentedCase
from raygenesis.transfer.results import TrialResult
from raygenesis.transfer.statistics import Comparison, Difference

THEIRS, OURS, OTHERS = [0.60, 0.70, 0.50, 0.64], [0.66, 0.75, 0.57, 0.70], [0.40, 0.52, 0.47, 0.41]


def trials(figures: list[float], metric: str = "dice", test: list[SegmentedCase] | None = None) -> list[TrialResult]:
    """One test case unless some are given."""
    return [
        TrialResult(
            initialisation="", labelled=5, trial=number, figures={metric: figure, "iou": figure / 2},
            test=tuple(test or [segmented("a", figure) if metric == "dice" else AnsweredCase("a.nii", "a", 0, 0)]),
            seconds=3.0 + number, epochs_to_converge=10.0 * number, seconds_to_converge=1.0,
        )
        for number, figure in enumerate(figures)
    ]  # fmt: skip


def segmented(subject: str, dice: float) -> SegmentedCase:
    return SegmentedCase(f"{subject}.nii", subject, dice, dice, [dice], [dice], [1], [1], [1])


def hedges(first: list[float], second: list[float]) -> float:
    """Hedges' g of samples of equal size, by its formula with the approximate correction."""
    num = len(first)
    pooled = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    return (np.mean(first) - np.mean(second)) / pooled * (1 - 3 / (4 * (2 * num - 2) - 1))


def compared(name: str, mean: float = 0.5, **changed: Any) -> Comparison:
    """A comparison that nobody has computed."""
    given = {
        "initialisation": name, "labelled": 5, "trials": 3, "metric": "dice", "mean": mean, "sd": 0.01, "low": 0.4,
        "high": 0.6, "is_best": False, "seconds_per_trial": 1.26, "epochs_to_converge": 12.4,
        "seconds_to_converge": 0.5, "figures": {"dice": mean},
    }  # fmt: skip
    return Comparison(**given | changed)


TABLE = [
    compared("random", against_best=Difference(-0.1, -2.0, 0.2, 0.3, 0.4, 0.6)),
    compared("far_off", 0.3, against_best=Difference(-0.3, -9.0, 0.01, 0.02, 0.02, 0.04),
        against_random=Difference(-0.2, -5.04, 0.03, 0.02, 0.06, 0.04)),
    compared("ours", 0.6, is_best=True, against_random=Difference(0.1, 2.0, None, None)),
]  # fmt: skip
