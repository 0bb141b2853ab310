"""Errors of restored cubes against loops, and what the pretext task `mae` reports against them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raygenesis.pretraining.corruption_sets import CORRUPTIONS
from raygenesis.pretraining.draws import Draws
from raygenesis.pretraining.masks import masked_units, unit_sides
from raygenesis.pretraining.restoration import blank_error, restoration_error
from raygenesis.pretraining.task import VALIDATION_EPOCH, PretextTask
from raygenesis.settings import PretrainingSettings
from tests.support.synthetic import pattern_table, samples

SHAPES = [(16, 16, 16), (32, 48)]


def task(shape, **settings):
    chosen = {"pretext": "mae", "base_width": 2, "batch_size": 6, "num_classification_epochs": 1, **settings}
    return PretextTask(PretrainingSettings(**chosen), 3, shape, 1, 2)


def batch(shape, num=5):
    return samples(pattern_table(num, shape), shape).batch(np.arange(num))


def looped(answers, originals, masks):
    """Mean squared error of each cube, voxel by voxel."""
    errors = []
    for answer, original, mask in zip(answers, originals, masks, strict=True):
        total, number = 0.0, 0
        for place in np.ndindex(mask.shape):
            if mask[place]:
                total += (float(answer[place]) - float(original[place])) ** 2
                number += 1
        errors.append(total / number)
    return errors


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_count_what_is_masked_alone_each_cube_by_itself(shape):
    generator = np.random.default_rng(0)
    answers, originals = (generator.random((3, 1, *shape), np.float32) for _ in range(2))
    masks = generator.random((3, 1, *shape)) < np.array([0.1, 0.5, 0.9]).reshape(3, *[1] * (len(shape) + 1))
    given = [torch.from_numpy(array) for array in (answers, originals, masks)]
    assert restoration_error(*given).tolist() == pytest.approx(looped(answers, originals, masks), rel=1e-5)
    means = [np.full_like(cube, cube[mask].mean()) for cube, mask in zip(originals, masks, strict=True)]
    assert blank_error(*given[1:]).tolist() == pytest.approx(looped(means, originals, masks), rel=1e-5)
    whole = np.ones_like(masks)
    assert restoration_error(*given[:2]).tolist() == pytest.approx(looped(answers, originals, whole), rel=1e-5)
    assert blank_error(given[1]).tolist() == pytest.approx([cube.var() for cube in originals], rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_of_mae_is_the_error_over_masked_voxels_and_so_are_the_answers_it_is_compared_with(shape):
    chosen, cubes = task(shape), batch(shape)
    model = chosen.build().eval()
    for epoch in (0, VALIDATION_EPOCH):
        draws = Draws.of(3, torch.from_numpy(cubes.columns["pattern_id"]), epoch)
        units = masked_units(draws, shape, CORRUPTIONS["mae"].mask_ratio).numpy()
        masks = np.zeros((5, 1, *shape), bool)
        for sample, *place in np.argwhere(units):
            inside = tuple(slice(at * side, (at + 1) * side) for at, side in zip(place, unit_sides(shape), strict=True))
            masks[(sample, 0, *inside)] = True
        original = cubes.cubes.numpy()
        shown = np.where(masks, 0, original)
        with torch.no_grad():
            restored = model(torch.from_numpy(shown)).restored.numpy()
            expected = looped(restored, original, masks)
            if epoch == VALIDATION_EPOCH:
                sums = {name: value.tolist() for name, value in chosen.evaluate(model, cubes).items()}
                assert sums["restoration"] == sums["loss"] == pytest.approx(sum(expected), rel=1e-4)
                assert sums["identity"] == pytest.approx(sum(looped(shown, original, masks)), rel=1e-4)
                means = [np.full_like(cube, cube[mask].mean()) for cube, mask in zip(original, masks, strict=True)]
                assert sums["blank"] == pytest.approx(sum(looped(means, original, masks)), rel=1e-4)
            else:
                losses = chosen.losses(model, cubes, epoch)
                assert losses["loss"].item() == pytest.approx(np.mean(expected), rel=1e-4)
                assert losses["restoration"].item() == losses["loss"].item()


def test_what_is_shown_is_not_learnt_from():
    """Whatever the decoder answers where nothing is masked, the loss is the same, and its gradient there nothing."""
    shape = (32, 32)
    chosen = task(shape)
    made = chosen.make_batch(batch(shape), 0)
    answer = torch.rand(5, 1, *shape, requires_grad=True)
    restoration_error(answer, made.original, made.masked).mean().backward()
    assert ((answer.grad != 0) == made.masked).all()
    assert made.masked.flatten(1).double().mean(1).tolist() == [11 / 16] * 5


def test_a_mask_may_be_learnt_from_beside_the_label():
    chosen = task((32, 32), pretext="semantic-genesis", corruption="mae", num_classification_epochs=0)
    losses = chosen.losses(chosen.build().eval(), batch((32, 32)), 0)
    total = losses["restoration"] + 0.01 * losses["classification"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    assert chosen.make_batch(batch((32, 32)), 0).masked is not None


def test_without_masks_nothing_is_masked():
    chosen = replace(task((32, 32)), settings=PretrainingSettings(pretext="in-painting", base_width=2))
    assert chosen.make_batch(batch((32, 32)), 0).masked is None and chosen.held_out_places(batch((32, 32))) is None
