"""Augmentation: small random changes of a batch of images, and of label maps with them, that change no answer.

One affine map a sample (rotation, scaling, shift, mirroring), by which images are sampled linearly and label maps to
the nearest voxel; then gamma, gain, offset and noise of images in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch.nn import functional

from raygenesis.training.devices import send

# Share of the samples that are moved, and of those whose greys change: what is tested on is not changed, and a short
# training is to see enough that is like it.
CHANGED = 0.5
# About each axis: heads in a coil and trunks on a table lie tilted by hardly more.
MAX_ROTATION_DEG = 10.0
# Factors of size: adults and their organs differ by about a tenth in each direction.
SCALES = (0.9, 1.11)
# Share of a side: whole scans are centred to about so much; patches are drawn at random places anyway.
MAX_SHIFT = 0.03
# Contrasts of one tissue to another differ so between protocols of one modality.
GAMMAS = (0.8, 1.25)
# Percentiles, by which intensities are scaled, move by so much with what else is in the image.
GAINS = (0.9, 1.11)
MAX_OFFSET = 0.05
# Standard deviation: what a scan of half the time has in addition.
MAX_NOISE = 0.03

# Share of a side that a patch is cut larger by on either side, for what turns into it.
MARGIN = 0.25


@dataclass(frozen=True)
class Augmentation:
    """How batches are changed.

    shape: voxels of the images that come out, z y x (2D: y x). voxel_sizes: along the same axes, in one unit, so that
    places are turned and not indices. symmetric_axes: those of x, y and z along which images may be mirrored.
    """

    shape: tuple[int, ...]
    voxel_sizes: tuple[float, ...]
    symmetric_axes: tuple[str, ...] = ()


def augment(
    images: torch.Tensor, labels: torch.Tensor | None, augmentation: Augmentation, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Change a batch of images, float32 [n, 1, z, y, x] in [0, 1], and their label maps, uint8, each sample otherwise.

    Returns images and labels of `augmentation.shape`, from the middle of those given, which may be larger. Beyond their
    edges there is what lies on the edge.
    """
    maps = random_maps(len(images), augmentation, generator)
    theta = send(torch.from_numpy(_normalised(maps, augmentation.shape, images.shape[2:])), images.device)
    grid = functional.affine_grid(theta, [len(images), 1, *augmentation.shape], align_corners=False)
    moved = functional.grid_sample(images, grid, "bilinear", "border", align_corners=False)  # trilinear in 3D
    if labels is not None:
        labels = functional.grid_sample(labels.float(), grid, "nearest", "border", align_corners=False).to(labels.dtype)
    return change_intensities(moved, generator), labels


def random_maps(num_samples: int, augmentation: Augmentation, generator: np.random.Generator) -> NDArray[np.float64]:
    """Affine maps [n, ndim, ndim + 1] from voxels of what comes out to those of what is given, x y z (2D: x y).

    Voxels are counted from the middle of either.
    """
    sides, sizes = (np.array(each)[::-1] for each in (augmentation.shape, augmentation.voxel_sizes))
    ndim = len(sides)
    angles = generator.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG, (num_samples, 3 if ndim == 3 else 1))
    turned = Rotation.from_euler("zyx" if ndim == 3 else "z", angles, degrees=True).as_matrix()[:, :ndim, :ndim]
    scales = _factors(generator, SCALES, num_samples)[:, None, None]
    shifts = generator.uniform(-MAX_SHIFT, MAX_SHIFT, (num_samples, ndim)) * sides
    signs = np.ones((num_samples, ndim))
    for axis in augmentation.symmetric_axes:
        signs[:, "xyz".index(axis)] = generator.choice([-1, 1], num_samples)
    moved = (generator.random(num_samples) < CHANGED)[:, None, None]
    linear = np.where(moved, turned * scales * sizes / sizes[:, None], np.eye(ndim)) * signs[:, None]
    return np.concatenate([linear, moved * shifts[:, :, None]], 2)


def change_intensities(images: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Change grey values of a batch [n, 1, …] in [0, 1], each sample otherwise: gamma, gain, offset, noise; clipped."""
    num_samples = len(images)
    drawn = [
        _factors(generator, GAMMAS, num_samples), _factors(generator, GAINS, num_samples),
        generator.uniform(-MAX_OFFSET, MAX_OFFSET, num_samples), generator.uniform(0, MAX_NOISE, num_samples),
    ]  # fmt: skip
    changed = generator.random(num_samples) < CHANGED
    values = np.where(changed, np.stack(drawn), [[1.0], [1.0], [0.0], [0.0]])
    each = send(torch.from_numpy(values).to(images.dtype), images.device)
    each = each.reshape(4, num_samples, *[1] * (images.ndim - 1))
    gamma, gain, offset, deviation = each
    source = torch.Generator(images.device).manual_seed(int(generator.integers(2**63)))
    noise = torch.randn(images.shape, generator=source, device=images.device)
    return images.pow(gamma).mul_(gain).add_(offset).addcmul_(noise, deviation).clamp_(0, 1)


def margin_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Voxels on either side that a patch of this shape is cut larger by, for what turns into it."""
    return tuple(math.ceil(MARGIN * side) for side in shape)


def _factors(generator: np.random.Generator, bounds: tuple[float, float], count: int) -> NDArray[np.float64]:
    """Random factors between bounds, as often twice as large as half as large."""
    low, high = map(math.log, bounds)
    return np.exp(generator.uniform(low, high, count))


def _normalised(maps: NDArray[np.float64], shape: Sequence[int], given: Sequence[int]) -> NDArray[np.float32]:
    """The maps as torch takes them: the edges of either are at -1 and 1."""
    halves, halves_given = (np.array(sides)[::-1] / 2 for sides in (shape, given))
    return (maps * [*halves, 1.0] / halves_given[:, None]).astype(np.float32)
