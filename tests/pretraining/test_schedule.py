"""The learning rate: the paper's steps, a cosine, a warm-up, and a rate of its own for classification alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raygenesis.pretraining.schedule import learning_rate
from raygenesis.settings import PretrainingSettings


def rates(points, alone=False, **chosen):
    settings = PretrainingSettings(learning_rate=1.0, num_classification_epochs=20, num_joint_epochs=80, **chosen)
    return [learning_rate(settings, epoch, share, alone) for epoch, share in points]


def test_the_papers_rate_is_halved_every_forty_epochs():
    assert rates([(0, 0.1), (39, 1.0), (40, 0.1), (79, 1.0), (80, 0.1)]) == [1, 1, 0.5, 0.5, 0.25]


def test_a_cosine_falls_from_the_rate_to_nothing():
    found = rates([(0, 0.0), (49, 1.0), (24, 1.0), (99, 1.0)], schedule="cosine")
    assert found == pytest.approx([1, 0.5, 0.5 * (1 + math.cos(math.pi / 4)), 0])


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_rate_rises_evenly_during_the_warm_up_and_joins_the_schedule(schedule):
    found = rates([(0, 0.5), (1, 0.0), (1, 0.5), (2, 0.0), (2, 0.5)], schedule=schedule, warmup_epochs=2.5)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    (after,) = rates([(3, 0.0)], schedule=schedule, warmup_epochs=2.5)
    assert after == pytest.approx(1.0, abs=1e-3)


def test_classification_alone_may_have_a_rate_of_its_own():
    chosen = {"classification_learning_rate": 0.1}
    assert rates([(3, 1.0), (45, 1.0)], alone=True, **chosen) == [0.1, 0.05]
    assert rates([(3, 1.0)], alone=False, **chosen) == [1.0]
    assert rates([(3, 1.0)], alone=True) == [1.0]


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_rates_grow_in_proportion_to_the_batch_they_were_chosen_for(schedule):
    points = [(0, 0.5), (1, 0.5), (50, 0.5)]
    alone = {"classification_learning_rate": 0.1}
    for is_alone in (False, True):
        plain = rates(points, is_alone, schedule=schedule, warmup_epochs=1, **alone)
        for batch_size, factor in ((16, 0.25), (64, 1.0), (256, 4.0)):
            given = {"batch_size": batch_size, "scale_learning_rate": 64, "warmup_epochs": 1, **alone}
            assert rates(points, is_alone, schedule=schedule, **given) == pytest.approx(np.multiply(plain, factor))
