"""Masks: the sides of units, exactly the same share of them in each sample, and the voxels that they cover."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from raygenesis.pretraining.draws import Draws
from raygenesis.pretraining.masks import mask, masked_units, masked_voxels, unit_sides


def streams(number, epoch=0):
    return Draws.of(1, torch.arange(number), epoch)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((32, 32, 32), (8, 8, 8)), ((32, 64, 64), (8, 16, 16)), ((16, 8, 64), (4, 4, 16)), ((128, 128), (16, 16)),
        ((224, 224), (16, 16)), ((20, 17, 40), (5, 4, 10)),
    ],
)  # fmt: skip
def test_a_units_side_is_a_quarter_of_the_cubes_within_bounds(shape, sides):
    assert unit_sides(shape) == sides


@pytest.mark.parametrize("ratio", [0.7, 0.6, 0.0, 1.0])
@pytest.mark.parametrize(("shape", "num_units"), [((32, 32, 32), 64), ((224, 224), 196), ((20, 17, 18), 100)])
def test_each_sample_has_exactly_the_share_of_masked_units_and_its_own(shape, num_units, ratio):
    units = masked_units(streams(50), shape, ratio)
    assert units.dtype == torch.bool and units[0].numel() == num_units
    assert (units.flatten(1).sum(1) == round(ratio * num_units)).all()
    if 0 < ratio < 1:
        assert len(units.flatten(1).unique(dim=0)) == 50
        assert not torch.equal(units, masked_units(streams(50, epoch=1), shape, ratio))
        assert torch.equal(units[7:9], masked_units(streams(50).select(torch.tensor([7, 8])), shape, ratio))


def test_every_unit_is_masked_as_often():
    shares = masked_units(streams(4000), (32, 32), 0.75).flatten(1).double().mean(0)
    assert len(shares) == 16 and (shares - 0.75).abs().max() < 5 * np.sqrt(0.75 * 0.25 / 4000)


@pytest.mark.parametrize("shape", [(32, 16, 24), (20, 17, 18), (30, 64)])
def test_masked_voxels_are_those_of_masked_units_and_show_nothing(shape):
    units = masked_units(streams(3), shape, 0.5)
    voxels = masked_voxels(units, shape)
    assert voxels.shape == (3, 1, *shape)
    cubes = 1 + torch.rand(3, 2, *shape)
    hidden = cubes.clone()
    mask(hidden, units)
    sides = [max(4, side // 4) for side in shape]
    for sample in range(3):
        for at in itertools.product(*(range(0, side, 3) for side in shape)):
            unit = tuple(place // side for place, side in zip(at, sides, strict=True))
            is_masked = bool(units[(sample, *unit)])
            assert bool(voxels[(sample, 0, *at)]) == is_masked
            for channel in range(2):
                place = (sample, channel, *at)
                assert hidden[place] == (0 if is_masked else cubes[place])
