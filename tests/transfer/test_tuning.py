"""The rate of each initialisation: the best mean, of equal ones the lower, and never one that diverges."""

from __future__ import annotations

import pytest

from raygenesis.transfer.tuning import best_rate, mean_scores


def test_a_rate_s_score_is_its_mean_and_one_that_diverged_has_none() -> None:
    scores = {0.01: [0.5, 0.7], 0.1: [0.9, None], 1.0: [None, None]}
    assert mean_scores(scores) == {0.01: pytest.approx(0.6)}


@pytest.mark.parametrize(("means", "sign", "rate"), [
    ({0.001: 0.3, 0.003: 0.5, 0.01: 0.4}, 1, 0.003), ({0.001: 0.3, 0.003: 0.5, 0.01: 0.4}, -1, 0.001),
    ({0.01: 0.5, 0.003: 0.5, 0.001: 0.1}, 1, 0.003), ({0.01: 2.0, 0.003: 2.0}, -1, 0.003), ({0.01: 0.0}, 1, 0.01),
])  # fmt: skip
def test_the_best_mean_wins_and_of_equal_ones_the_lower_rate(means: dict[float, float], sign: int, rate: float) -> None:
    assert best_rate(means, sign) == rate
