"""The table's numbers, against the textbook's formulas."""

import math

import numpy as np
import pytest
from scipy import stats

from raygenesis.transfer.statistics import Comparison, compare

RANDOM_DICE = [0.60, 0.70, 0.50, 0.64]
OUR_DICE = [0.66, 0.75, 0.57, 0.70]


def trials(dice: list[float]) -> list[dict[str, float]]:
    return [{"dice": value, "iou": value / 2, "seconds": 3.0 + n} for n, value in enumerate(dice)]


def compared(random: list[float], ours: list[float]) -> tuple[Comparison, Comparison]:
    first, second = compare({"random": trials(random), "ours": trials(ours)}, "random")
    return first, second


def test_means_deviations_and_difference() -> None:
    random, ours = compared(RANDOM_DICE, OUR_DICE)
    assert (random.initialisation, ours.initialisation) == ("random", "ours")
    assert random.trials == ours.trials == 4
    assert random.dice_mean == pytest.approx(0.61)
    assert random.dice_sd == pytest.approx(math.sqrt((0.01**2 + 0.09**2 + 0.11**2 + 0.03**2) / 3))
    assert random.iou_mean == pytest.approx(0.305)
    assert random.iou_sd == pytest.approx(random.dice_sd / 2)
    assert ours.difference_to_random == pytest.approx(0.06)
    assert ours.seconds_per_trial == pytest.approx(4.5)
    assert (random.difference_to_random, random.p_value, random.p_value_paired) == (None, None, None)


def test_p_values_are_welchs_and_the_paired_tests() -> None:
    _, ours = compared(RANDOM_DICE, OUR_DICE)
    a, b = np.array(OUR_DICE), np.array(RANDOM_DICE)
    share_a, share_b = a.var(ddof=1) / 4, b.var(ddof=1) / 4
    freedom = (share_a + share_b) ** 2 / (share_a**2 / 3 + share_b**2 / 3)
    t = (a.mean() - b.mean()) / math.sqrt(share_a + share_b)
    assert ours.p_value == pytest.approx(2 * stats.t.sf(t, freedom))
    paired = (a - b).mean() / ((a - b).std(ddof=1) / 2)
    assert ours.p_value_paired == pytest.approx(2 * stats.t.sf(paired, 3))
    assert ours.p_value_paired < 0.01 < ours.p_value  # what pairing is for


def test_without_spread_there_is_no_test_rather_than_certainty() -> None:
    _, same = compared([0.5, 0.5], [0.5, 0.5])
    assert (same.difference_to_random, same.p_value, same.p_value_paired) == (0.0, None, None)
    _, shifted = compared([0.5, 0.5], [0.6, 0.6])
    assert (shifted.p_value, shifted.p_value_paired) == (None, None)
    # Each varies, and all differences are 0.1 but for rounding.
    _, parallel = compared([0.1, 0.5, 0.7], [0.2, 0.6, 0.8])
    assert parallel.p_value is not None and parallel.p_value_paired is None


def test_one_side_without_spread_still_gives_welchs_test() -> None:
    _, ours = compared([0.5, 0.5, 0.5], [0.6, 0.7, 0.5])
    assert 0 < ours.p_value < 1 and 0 < ours.p_value_paired < 1
