"""A dense linear probe: the linear map that a segmentation reads from frozen features, at every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import UNet
from raygenesis.networks.slice_wise import slice_wise
from raygenesis.settings import FinetuneSettings
from raygenesis.transfer.cases import Case
from raygenesis.transfer.dense_probe import DenseProbe, FeatureLevels, draw_voxels, features_at, fit_dense_probe
from raygenesis.transfer.segmentation import segment
from raygenesis.transfer.setup import TrialSetup
from tests.support.cases import box_case, form

PATCH = (8, 8, 8)


class Intensity(nn.Module):
    """One level: the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


def levels(with_decoder: bool = False, norm: str = "batch") -> FeatureLevels:
    torch.manual_seed(0)
    unet = UNet(2, Architecture(base_width=2, norm=norm))
    return FeatureLevels(unet, with_decoder).eval().requires_grad_(False)


def setup(num_classes: int, **settings: Any) -> TrialSetup:
    chosen = FinetuneSettings(mode="probe", **settings)
    return TrialSetup("segmentation", num_classes, replace(form(), input_shape=PATCH), chosen)


def interpolated(level: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Linear interpolation by SciPy, voxels' centres where they are, the outermost values beyond them."""
    places = [(np.arange(side) + 0.5) * own / side - 0.5 for side, own in zip(shape, level.shape, strict=True)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    return ndimage.map_coordinates(level.astype(np.float64), grid, order=1, mode="nearest")


@pytest.mark.parametrize("with_decoder", [False, True])
def test_features_at_voxels_are_each_levels_interpolated_features(with_decoder: bool) -> None:
    network, image = levels(with_decoder), np.random.default_rng(0).random(PATCH)
    voxels = np.array([[0, 0, 0], [3, 4, 5], [7, 7, 7], [1, 6, 2]])
    found = features_at(network, image, voxels, PATCH, "cpu")
    with torch.inference_mode():
        features = network(torch.tensor(image, dtype=torch.float32)[None, None])
    assert [level.shape[1] for level in features] == [4, 8, 16, 32] + [16, 8, 4] * with_decoder
    golden = [interpolated(channel.numpy(), PATCH)[tuple(voxels.T)] for level in features for channel in level[0]]
    np.testing.assert_allclose(found, np.array(golden).T, atol=1e-5)


def test_a_voxel_is_read_from_the_window_in_whose_middle_it_is() -> None:
    """Windows of 8 that overlap by half begin at 0, 4, 8 along an axis of 16."""
    network, image = levels(), np.random.default_rng(1).random((16, 8, 8))
    voxel = np.array([[9, 4, 4]])
    alone = features_at(network, image[4:12], voxel - [4, 0, 0], PATCH, "cpu")
    np.testing.assert_allclose(features_at(network, image, voxel, PATCH, "cpu"), alone, atol=1e-6)
    assert not np.allclose(features_at(network, image[8:], voxel - [8, 0, 0], PATCH, "cpu"), alone, atol=1e-4)


def test_the_map_of_levels_is_the_map_of_their_features_at_each_voxel() -> None:
    network, generator = levels(with_decoder=True), np.random.default_rng(2)
    image = generator.random(PATCH)
    voxels = np.stack(np.unravel_index(np.arange(image.size), PATCH), 1)
    features = features_at(network, image, voxels, PATCH, "cpu")
    weights, intercepts = generator.normal(size=(3, features.shape[1])), generator.normal(size=3)
    probe = DenseProbe(network, torch.tensor(weights, dtype=torch.float32), torch.tensor(intercepts).float())
    logits = probe(torch.tensor(image, dtype=torch.float32)[None, None])[0].flatten(1).T
    np.testing.assert_allclose(logits, features @ weights.T + intercepts, atol=1e-4)


def test_voxels_are_drawn_half_of_background_and_evenly_over_classes() -> None:
    label = np.zeros((20, 20, 20), np.uint8)
    label[:10, :10] = 1
    label[15:, 15:, :4] = 2
    label[0, 0, 0] = 3
    voxels = draw_voxels(label, 5, 600, np.random.default_rng(0))  # nothing is of class 4
    assert np.bincount(label[tuple(voxels.T)]).tolist() == [300, 75, 75, 1]
    assert len(np.unique(voxels, axis=0)) == len(voxels)


def test_a_rare_class_is_found_where_it_is_likelier_and_not_where_half_of_the_drawn_are() -> None:
    """Intensities of two classes are normal: the boundary of their posteriors is that of linear discriminants."""
    share, means, deviation = 0.05, (0.3, 0.6), 0.1
    generator = np.random.default_rng(0)
    label = (generator.random((40, 40, 40)) < share).astype(np.uint8)
    image = generator.normal(np.take(means, label), deviation)
    case = Case("a", "a", image.astype(np.float16), label)
    probe = fit_dense_probe(Intensity(), [case], setup(2), 0)  # type: ignore[arg-type]
    weight, intercept = (probe.weights[1] - probe.weights[0]).item(), (probe.intercepts[1] - probe.intercepts[0]).item()
    boundary = sum(means) / 2 + deviation**2 * log((1 - share) / share) / (means[1] - means[0])
    assert -intercept / weight == pytest.approx(boundary, abs=0.01)


def test_a_probe_finds_boxes_and_never_a_class_that_no_case_has() -> None:
    learnt, tested = [box_case(number) for number in range(3)], box_case(7)
    probe = fit_dense_probe(levels(), learnt, setup(4), 0)
    predicted = segment(probe, tested.image, PATCH, 4)
    assert tested.label is not None and set(np.unique(predicted)) <= {0, 1, 2}
    agreement = (predicted == tested.label)[tested.label > 0].mean()
    assert agreement > 0.7


def test_a_seed_decides_and_weights_of_the_network_stay() -> None:
    network = levels()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, again, other = (fit_dense_probe(network, [box_case(0)], setup(3), seed) for seed in (1, 1, 2))
    assert torch.equal(first.weights, again.weights) and not torch.equal(first.weights, other.weights)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_2d_network_is_probed_slice_by_slice() -> None:
    torch.manual_seed(0)
    flat = UNet(2, Architecture(ndim=2, base_width=2))
    image = np.random.default_rng(3).random(PATCH)
    with torch.inference_mode():
        of_slice = FeatureLevels(flat, True).eval()(torch.tensor(image[2:3], dtype=torch.float32)[None])
    golden = [interpolated(channel.numpy(), PATCH[1:])[5, 6] for level in of_slice for channel in level[0]]
    network = FeatureLevels(slice_wise(flat), True).eval()
    found = features_at(network, image, np.array([[2, 5, 6]]), PATCH, "cpu")[0]
    np.testing.assert_allclose(found, golden, atol=1e-5)


def test_of_background_alone_background_is_the_answer() -> None:
    empty = Case("a", "a", np.random.default_rng(0).random((8, 8, 8)).astype(np.float16), np.zeros((8, 8, 8), np.uint8))
    probe = fit_dense_probe(levels(), [empty], setup(3), 0)
    assert not segment(probe, empty.image, PATCH, 4).any()
