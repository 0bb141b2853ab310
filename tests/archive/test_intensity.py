"""Intensity: what the window or the percentiles name become 0 and 1, for any stored type and slope."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.archive import intensity
from raygenesis.archive.intensity import MOST_VOXELS, limits, normalise, percentiles
from raygenesis.errors import ScanError
from raygenesis.settings import IntensitySettings

many = settings(max_examples=100, deadline=None, derandomize=True, database=None)

HU = IntensitySettings(window=(-1000, 1000))
OWN = IntensitySettings()


def row(low: float = 0.0, high: float = 1.0, slope: float = 1.0, intercept: float = 0.0) -> dict[str, Any]:
    return {"low": [low], "high": [high], "slope": slope, "intercept": intercept}


@many
@given(st.lists(st.integers(-30000, 30000), min_size=2, max_size=400))
def test_percentiles_are_read_off_the_sorted_voxels(values) -> None:
    ordered = np.sort(values)
    places = np.array([0.005, 0.995]) * (len(values) - 1)
    expected = np.interp(places, np.arange(len(values)), ordered)
    if expected[0] == expected[1]:
        expected = ordered[[0, -1]]
    assert percentiles(np.array(values, np.int16)) == pytest.approx(tuple(expected))


def test_a_mostly_empty_scan_is_scaled_by_its_extremes() -> None:
    voxels = np.zeros(10_000, np.uint8)
    voxels[:3] = 9
    assert percentiles(voxels) == (0.0, 9.0)


def test_one_hot_voxel_does_not_darken_the_scan() -> None:
    voxels = np.append(np.arange(10_000) % 100, 30_000).astype(np.int16)
    assert percentiles(voxels)[1] < 100


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        (1.0, 0.0, (-1000.0, 1000.0)),
        (1.0, -1024.0, (24.0, 2024.0)),
        (2.0, -1000.0, (0.0, 1000.0)),
        (-1.0, 0.0, (1000.0, -1000.0)),
    ],
)
def test_a_window_is_in_real_values(slope: float, intercept: float, expected: tuple[float, float]) -> None:
    assert limits(row(slope=slope, intercept=intercept), HU) == expected


def test_without_a_window_the_scan_s_own_percentiles_count() -> None:
    assert limits(row(3, 8), OWN) == (3, 8)
    assert limits(row(3, 8, slope=-2), OWN) == (8, 3)


@many
@given(
    slope=st.sampled_from([-3.0, -1.0, -0.25, 0.25, 1.0, 3.0]), intercept=st.floats(-2000, 2000),
    window=st.booleans(), dtype=st.sampled_from([np.int16, np.int32, np.float32]),
)  # fmt: skip
def test_brighter_in_reality_is_never_darker_in_the_network(slope, intercept, window, dtype) -> None:
    stored = np.random.default_rng(0).integers(-3000, 3000, 500).astype(dtype)
    facts = row(*percentiles(stored), slope, intercept)
    low, high = limits(facts, HU if window else OWN)
    values = normalise(stored, low, high)
    real = stored * slope + intercept
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1
    assert (np.diff(values[np.argsort(real)]) >= 0).all()
    ends = (-1000, 1000) if window else np.percentile(stored, (0.5, 99.5)) * slope + intercept
    assert np.allclose(values, np.clip((real - min(ends)) / abs(ends[1] - ends[0]), 0, 1), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8])
def test_small_integers_do_not_wrap_round(dtype) -> None:
    assert normalise(np.array([0, 50, 75, 100, 127], dtype), 50, 100).tolist() == [0, 0, 0.5, 1, 1]


def test_normalising_leaves_the_stored_voxels_alone() -> None:
    stored = np.array([0.0, 5.0, 10.0], np.float32)
    stored.flags.writeable = False  # as arrays from Ray are
    assert normalise(stored, 0, 10).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_percentiles_of_a_large_scan_come_from_an_even_sample(dtype) -> None:
    voxels = np.random.default_rng(0).normal(0, 300, (100, 150, 200)).astype(dtype)
    assert voxels.size > MOST_VOXELS
    assert percentiles(voxels) == pytest.approx(tuple(np.percentile(voxels, (0.5, 99.5))), rel=0.03)
    assert percentiles(voxels) == percentiles(voxels)


def test_a_large_scan_with_little_in_it_is_scaled_by_the_extremes_of_all_voxels() -> None:
    voxels = np.zeros(3 * MOST_VOXELS, np.uint8)
    voxels[[1, 2]] = 3, 9  # between those that are sampled
    assert percentiles(voxels) == (0.0, 9.0)


def test_each_channel_has_limits_of_its_own() -> None:
    facts = {"low": [1.0, 2.0], "high": [5.0, 6.0], "slope": 1.0, "intercept": 0.0}
    assert limits(facts, OWN) == (1, 5)
    assert limits(facts, IntensitySettings(channel=1)) == (2, 6)
    assert limits(row(3, 8), IntensitySettings(channel=1)) == (3, 8)  # what has one channel is read by that
    with pytest.raises(ScanError, match=r"2 channels, and intensity\.channel=2 asks for another"):
        limits(facts, IntensitySettings(channel=2))


def test_a_channel_of_a_single_value_is_no_image_without_a_window() -> None:
    facts = {"low": [7.0, 2.0], "high": [7.0, 6.0], "slope": 1.0, "intercept": 0.0}
    with pytest.raises(ScanError, match="every voxel of its channel 0 is the same"):
        limits(facts, OWN)
    assert limits(facts, IntensitySettings(channel=1)) == (2, 6)
    assert limits(facts, HU) == (-1000, 1000)


@pytest.mark.parametrize("shape", [(64, 32, 32), (128, 64, 64), (1024, 16, 64), (4, 8, 4096)])
def test_the_sample_of_a_large_scan_misses_no_plane(shape, monkeypatch) -> None:
    """Strides would read a single edge of sides that are powers of two."""
    monkeypatch.setattr(intensity, "MOST_VOXELS", 4 * 4096)
    voxels = np.full(shape, -1000, np.int16)
    body = tuple(slice(side // 4, -side // 4) for side in shape)
    voxels[body] = np.random.default_rng(0).integers(0, 1500, voxels[body].shape)
    low, high = percentiles(voxels)
    assert low == -1000 and abs(high - np.percentile(voxels, 99.5)) < 60
