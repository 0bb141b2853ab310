"""A network's load, against multiplications counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raygenesis.cluster.work import Load
from raygenesis.networks.operations import count_operations
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import load_settings


def test_two_convolutions_by_hand() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 1))
    first, second = 2 * 27 * 1 * 4 * 8**3, 2 * 4 * 2 * 8**3
    # The first layer's input needs no gradient: forward and weights; the second's does.
    load = count_operations(model, (8, 8, 8))
    assert load.gflop == pytest.approx((2 * first + 3 * second) / 1e9)
    assert load.mega_activations == pytest.approx((4 + 2) * 8**3 / 1e6)


def test_part_of_a_network() -> None:
    model = nn.ModuleList([nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1)])
    whole = count_operations(model, (4, 4), lambda images: model[1](model[0](images)))
    part = count_operations(model, (4, 4), lambda images: model[0](images))
    assert part.gflop == pytest.approx(2 * 2 * 3 * 16 / 1e9)
    assert whole.gflop == pytest.approx(part.gflop + 3 * 2 * 9 * 16 / 1e9)


def test_several_answers_count_all() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
            return self.a(images), None, self.b(images)

    assert count_operations(Two(), (2, 2)).gflop == pytest.approx(2 * 2 * 2 * 4 / 1e9)


def test_the_papers_network_is_three_quarters_of_a_tflop_a_cube() -> None:
    paper = load_settings("paper-3d")
    model = PretextTask(paper.pretraining, 0, paper.discovery.cube_shape, 1, 44).build()
    assert count_operations(model, paper.discovery.cube_shape).gflop == pytest.approx(754, rel=0.01)


def test_loads_add_and_multiply() -> None:
    assert Load(1, 2) + Load(3, 4) * 2 == Load(7, 10)
