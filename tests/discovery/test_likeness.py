"""How alike scans are: copies, however they were made, and what is no copy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from raygenesis.discovery.duplicates import COPY_LIKENESS, FINE_GRID, ROUGH_GRID, ROUGH_LIKENESS
from raygenesis.discovery.likeness import CoarseScan, best_correlation, likeness

SHAPE = (48, 60, 52)
SIZE = np.array(SHAPE) * 3.0  # mm


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """An ellipsoid of smooth texture."""
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.5)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    body = ndimage.gaussian_filter((np.square(places).sum(0) < 0.8).astype(float), 1)
    return (body * (0.5 + 0.4 * blobs / np.abs(blobs).max())).astype(np.float32)


def alike(one: np.ndarray, size, other: np.ndarray, other_size, grid: int) -> float:
    scans = (CoarseScan(voxels, np.asarray(mm, float)) for voxels, mm in ((one, size), (other, other_size)))
    return likeness(*scans, grid)


def is_copy(one: np.ndarray, size, other: np.ndarray, other_size) -> bool:
    rough, fine = (alike(one, size, other, other_size, grid) for grid in (ROUGH_GRID, FINE_GRID))
    return rough >= ROUGH_LIKENESS and fine >= COPY_LIKENESS


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_known_whatever_was_done_to_them(seed):
    generator, original = np.random.default_rng(seed), scan(seed)
    assert is_copy(original, SIZE, original, SIZE)
    assert is_copy(original, SIZE, 40 - 3 * (1 - original), SIZE)  # other units
    noise = 0.03 * original.max() * generator.standard_normal(SHAPE)
    assert is_copy(original, SIZE, np.float32(original + noise), SIZE)
    resampled = ndimage.zoom(original, (0.8, 0.75, 0.9), order=1)
    assert is_copy(original, SIZE, resampled, SIZE) and is_copy(resampled, SIZE, original, SIZE)
    cropped = original[2:-1, 3:-2, 1:-3]
    assert is_copy(original, SIZE, cropped, np.array(cropped.shape) * 3.0)
    assert is_copy(cropped, np.array(cropped.shape) * 3.0, original, SIZE)
    assert is_copy(original, SIZE, original, SHAPE)  # without its voxel size


@pytest.mark.parametrize("seed", range(3))
def test_others_and_another_visit_are_no_copies(seed):
    original, other = scan(seed), scan(seed + 10)
    assert not is_copy(original, SIZE, other, SIZE)
    assert not is_copy(original, SIZE, original[:, :, ::-1], SIZE)
    turned = ndimage.rotate(original, 4, (0, 1), reshape=False, order=1)
    turned = ndimage.rotate(turned, -3, (1, 2), reshape=False, order=1)
    assert not is_copy(original, SIZE, turned, SIZE)
    half = original[: SHAPE[0] // 2]  # hardly a crop any more
    assert not is_copy(original, SIZE, half, np.array(half.shape) * 3.0)


def test_images_work_as_volumes_do():
    image, size = scan(0, (90, 80)), np.array([270.0, 240.0])
    assert is_copy(image, size, image[3:, 2:-4], np.array([87, 74]) * 3.0)
    assert not is_copy(image, size, scan(1, (90, 80)), size)


def test_blank_scans_are_like_nothing():
    blank = np.zeros(SHAPE, np.float32)
    assert alike(blank, SIZE, blank, SIZE, FINE_GRID) == 0
    assert alike(blank, SIZE, scan(0), SIZE, FINE_GRID) == 0


def test_the_best_shift_is_found_and_its_correlation_is_numpys():
    generator = np.random.default_rng(0)
    whole = generator.standard_normal((40, 44, 36))
    one, other = whole[:32, 4:40, 2:34], whole[3:35, :36, :32]
    # Moved by (3, -4, -2), both show whole[3:32, 4:36, 2:32]; its ends, a sixteenth of the longest side, do not count.
    common = whole[3 + 2 : 32 - 2, 4 + 2 : 36 - 2, 2 + 2 : 32 - 2].ravel()
    assert best_correlation(one, other) == pytest.approx(np.corrcoef(common, common)[0, 1], abs=1e-2)
    assert best_correlation(one, generator.standard_normal((32, 36, 32))) < 0.2
