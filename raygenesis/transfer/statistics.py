"""Comparing initialisations over paired trials: means, deviations and t-tests of the Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Differences this small are rounding: no spread, so no t-test.
NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Comparison:
    """One initialisation over its trials. Deviations are those of a sample (n − 1).

    The difference and the p-values concern the Dice against the reference initialisation; they are None for the
    reference itself, and a p-value is None where no test can be made because nothing varies.
    p_value: independent two-sample t-test (Welch); p_value_paired: paired t-test over trials of the same seed.
    """

    initialisation: str
    trials: int
    dice_mean: float
    dice_sd: float
    iou_mean: float
    iou_sd: float
    difference_to_random: float | None
    p_value: float | None
    p_value_paired: float | None
    seconds_per_trial: float


def compare(results: Mapping[str, Sequence[Mapping[str, Any]]], reference: str) -> list[Comparison]:
    """One row per initialisation, in the order given.

    results: per initialisation its trials, each with `dice`, `iou` and `seconds`, in the same order of seeds.
    """
    baseline = _column(results[reference], "dice")
    rows = []
    for name, trials in results.items():
        dice, iou = _column(trials, "dice"), _column(trials, "iou")
        tests = (None, None, None) if name == reference else _against(dice, baseline)
        seconds = float(_column(trials, "seconds").mean())
        rows.append(
            Comparison(
                name, len(trials), float(dice.mean()), float(dice.std(ddof=1)), float(iou.mean()),
                float(iou.std(ddof=1)), *tests, seconds,
            )
        )  # fmt: skip
    return rows


def _column(trials: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([trial[key] for trial in trials], np.float64)


def _against(
    dice: NDArray[np.float64], baseline: NDArray[np.float64]
) -> tuple[float, float | None, float | None]:
    """Mean difference, Welch's p-value and the paired p-value."""
    independent = paired = None
    if max(np.ptp(dice), np.ptp(baseline)) > NO_SPREAD:
        ours, theirs = ((values.mean(), values.std(ddof=1), len(values)) for values in (dice, baseline))
        independent = float(stats.ttest_ind_from_stats(*ours, *theirs, equal_var=False).pvalue)
    if np.ptp(dice - baseline) > NO_SPREAD:
        paired = float(stats.ttest_rel(dice, baseline).pvalue)
    return float(dice.mean() - baseline.mean()), independent, paired
