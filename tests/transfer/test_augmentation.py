"""Augmentation: places move as SciPy moves them, labels with their images, greys as NumPy says, all by the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from raygenesis.transfer import augmentation
from raygenesis.transfer.augmentation import Augmentation, augment, change_intensities, margin_of, random_maps

CHANGES = [
    Augmentation((12, 10, 8), (2.0, 1.0, 0.5)), Augmentation((10, 12, 8), (1.0, 1.0, 1.0), ("x", "z")),
    Augmentation((14, 10), (1.0, 3.0)), Augmentation((12, 12), (1.0, 1.0), ("y",)),
]  # fmt: skip


def smooth(shape: tuple[int, ...], num: int = 3, seed: int = 0) -> np.ndarray:
    """Images [n, 1, …] in [0, 1] without edges that a hair's breadth would matter to."""
    noise = np.random.default_rng(seed).random((num, 1, *shape))
    grey = ndimage.gaussian_filter(noise, (0, 0, *[1.5] * len(shape)))
    return ((grey - grey.min()) / np.ptp(grey)).astype(np.float32)


def places(maps: np.ndarray, shape: tuple[int, ...], given: tuple[int, ...]) -> np.ndarray:
    """Where each voxel of what comes out is taken from: indices [n, ndim, voxels] z y x, as the maps have it."""
    indices = np.indices(shape).reshape(len(shape), -1)
    from_middle = (indices - (np.array(shape)[:, None] - 1) / 2)[::-1]  # x y z
    moved = maps[:, :, :-1] @ from_middle + maps[:, :, -1:]
    return moved[:, ::-1] + (np.array(given)[:, None] - 1) / 2


@pytest.mark.parametrize("changes", CHANGES)
def test_images_and_labels_are_sampled_as_by_scipy(changes: Augmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "change_intensities", lambda images, generator: images)
    given = tuple(side + 4 for side in changes.shape)
    images, labels = smooth(given), np.random.default_rng(1).integers(0, 9, (3, 1, *given), np.uint8)
    found = augment(torch.from_numpy(images), torch.from_numpy(labels), changes, np.random.default_rng(5))
    maps = random_maps(3, changes, np.random.default_rng(5))
    for number, at in enumerate(places(maps, changes.shape, given)):
        expected = ndimage.map_coordinates(images[number, 0], at, order=1, mode="nearest")
        assert np.allclose(found[0][number, 0].numpy().ravel(), expected, atol=1e-4)
        nearest = ndimage.map_coordinates(labels[number, 0], at, order=0, mode="nearest")
        sure = np.abs(at % 1 - 0.5).min(0) > 1e-3  # half-way between two voxels either is nearest
        assert np.array_equal(found[1][number, 0].numpy().ravel()[sure], nearest[sure]) and sure.mean() > 0.9
    assert found[1].dtype == torch.uint8


@pytest.mark.parametrize("changes", CHANGES)
def test_maps_turn_scale_and_shift_within_their_bounds(changes: Augmentation) -> None:
    """In mm they are a rotation times one factor, whatever the voxels, and mirror along the given axes alone."""
    maps = random_maps(400, changes, np.random.default_rng(0))
    still = np.isclose(np.abs(maps[:, :, :-1]), np.eye(len(changes.shape))).all((1, 2)) & (maps[:, :, -1] == 0).all(1)
    assert 0.4 < still.mean() < 0.6  # but for mirroring
    maps = maps[~still]
    sizes = np.array(changes.voxel_sizes[::-1])
    linear = sizes[:, None] * maps[:, :, :-1] / sizes
    factors = np.abs(np.linalg.det(linear)) ** (1 / len(sizes))
    turned = linear / factors[:, None, None]
    assert np.allclose(turned @ turned.transpose(0, 2, 1), np.eye(len(sizes)), atol=1e-9)
    assert 0.9 < factors.min() < 0.92 and 1.08 < factors.max() < 1.11
    signs = np.sign(np.diagonal(turned, axis1=1, axis2=2))  # no turn is so wide that it changes one
    for number, axis in enumerate("xyz"[: len(sizes)]):
        mirrored = (signs[:, number] < 0).mean()
        assert 0.4 < mirrored < 0.6 if axis in changes.symmetric_axes else mirrored == 0
    cosines = np.abs(np.diagonal(turned, axis1=1, axis2=2)).min(1)
    assert (0.96 if len(sizes) == 3 else np.cos(np.radians(10))) <= cosines.min() < 0.99  # of three turns and of one
    shifts = np.abs(maps[:, :, -1]) / changes.shape[::-1]
    assert shifts.max() <= 0.03 < shifts.max() * 1.1


def test_greys_change_as_numpy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth((6, 6, 6), 4)
    monkeypatch.setattr(augmentation, "MAX_NOISE", 0.0)
    monkeypatch.setattr(augmentation, "CHANGED", 0.6)
    found = change_intensities(torch.from_numpy(images), np.random.default_rng(3)).numpy()
    generator = np.random.default_rng(3)
    gammas, gains = (np.exp(generator.uniform(*np.log(bounds), 4)) for bounds in ((0.8, 1.25), (0.9, 1.11)))
    offsets, _ = generator.uniform(-0.05, 0.05, 4), generator.uniform(0, 0, 4)
    changed = generator.random(4) < 0.6
    assert 0 < changed.sum() < 4
    for number in range(4):
        if not changed[number]:
            assert np.array_equal(found[number], images[number])
            continue
        expected = images[number].astype(float) ** gammas[number] * gains[number] + offsets[number]
        assert np.allclose(found[number], expected.clip(0, 1), atol=1e-5)


def test_noise_is_of_each_voxel_and_greys_stay_in_their_range() -> None:
    half = torch.full((16, 1, 20, 20), 0.5)
    deviations = change_intensities(half, np.random.default_rng(0)).flatten(1).std(1).numpy()
    noisy = deviations[deviations > 1e-6]
    assert 4 <= len(noisy) < 16 and noisy.max() < 0.035 and len(set(noisy.round(6))) == len(noisy)
    assert noisy.max() > 2 * noisy.min()
    extremes = change_intensities(torch.tensor([0.0, 1.0]).repeat(8, 50)[:, None], np.random.default_rng(0))
    assert extremes.min() == 0 and extremes.max() == 1


@pytest.mark.parametrize("changes", CHANGES)
def test_the_generator_decides_everything(changes: Augmentation) -> None:
    images = torch.from_numpy(smooth(changes.shape))
    torch.manual_seed(1)
    first = augment(images, None, changes, np.random.default_rng(0))[0]
    torch.manual_seed(2)
    assert torch.equal(first, augment(images, None, changes, np.random.default_rng(0))[0])
    assert not torch.equal(first, augment(images, None, changes, np.random.default_rng(1))[0])
    assert first.shape == images.shape and first.dtype == torch.float32


def test_patches_are_cut_larger_by_a_quarter_of_each_side_on_either_side() -> None:
    assert margin_of((32, 32, 32)) == (8, 8, 8) and margin_of((10, 20)) == (3, 5)


def test_what_is_not_moved_is_the_middle_of_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "change_intensities", lambda images, generator: images)
    still = np.eye(3, 4)[None]
    monkeypatch.setattr(augmentation, "random_maps", lambda num, changes, generator: np.repeat(still, num, 0))
    images = torch.from_numpy(smooth((12, 10, 14)))
    found, labels = augment(
        images, (images > 0.5).byte(), Augmentation((8, 8, 8), (1.0, 1.0, 1.0)), np.random.default_rng(0)
    )
    middle = images[:, :, 2:10, 1:9, 3:11]
    assert torch.allclose(found, middle, atol=1e-5) and torch.equal(labels, (middle > 0.5).byte())
