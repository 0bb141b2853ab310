"""Resampling: interpolation is SciPy's, averaging is the formula written out as a loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from raygenesis.archive.geometry import axis_weights, best_level, resample

many = settings(max_examples=100, deadline=None, derandomize=True, database=None)

axes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.floats(-30, 60), st.floats(0.05, 120))


def resampled(voxels: np.ndarray, shape: tuple[int, ...], origins, extents) -> np.ndarray:
    regions, weights = zip(*map(axis_weights, voxels.shape, shape, origins, extents), strict=True)
    return resample(voxels[regions], weights)


def loop(line: np.ndarray, num_out: int, origin: float, extent: float) -> np.ndarray:
    """The triangle's definition, voxel by voxel over the whole line."""
    out, step = np.zeros(num_out), extent / num_out
    for j in range(num_out):
        centre = min(max(origin + (j + 0.5) * step, 0.5), len(line) - 0.5)
        total = 0.0
        for i, value in enumerate(line):
            weight = max(0.0, 1.0 - abs(i + 0.5 - centre) / max(step, 1.0))
            out[j] += weight * value
            total += weight
        out[j] /= total
    return out


@many
@given(axes, st.integers(0, 2**32 - 1))
def test_one_axis_is_the_formula(axis, seed) -> None:
    num_in, num_out, origin, extent = axis
    line = np.random.default_rng(seed).random(num_in)
    needed, weights = axis_weights(num_in, num_out, origin, extent)
    assert weights.dtype == np.float32 and weights.shape == (num_out, needed.stop - needed.start)
    assert 0 <= needed.start < needed.stop <= num_in
    assert (weights >= 0).all() and np.allclose(weights.sum(1), 1, atol=1e-6)
    assert np.allclose(weights @ line[needed], loop(line, num_out, origin, extent), atol=1e-5)


@pytest.mark.parametrize("num_voxels", [1, 2, 7])
def test_the_whole_array_at_its_own_size_is_itself(num_voxels: int) -> None:
    needed, weights = axis_weights(num_voxels, num_voxels, 0.0, float(num_voxels))
    assert needed == slice(0, num_voxels)
    assert np.array_equal(weights, np.eye(num_voxels))


@many
@given(st.data())
def test_finer_voxels_are_linear_interpolation_with_the_edge_repeated(data) -> None:
    ndim = data.draw(st.sampled_from([2, 3]))
    shape = data.draw(st.tuples(*[st.integers(2, 9)] * ndim))
    out = data.draw(st.tuples(*[st.integers(1, 9)] * ndim))
    origins = data.draw(st.tuples(*[st.floats(-4, 12)] * ndim))
    extents = [n * data.draw(st.floats(0.1, 1.0)) for n in out]
    voxels = np.random.default_rng(0).random(shape, np.float32)
    centres = [o + (np.arange(n) + 0.5) * e / n - 0.5 for o, n, e in zip(origins, out, extents, strict=True)]
    expected = map_coordinates(voxels, np.meshgrid(*centres, indexing="ij"), order=1, mode="nearest")
    assert np.allclose(resampled(voxels, out, origins, extents), expected, atol=1e-5)


@many
@given(axes)
def test_what_is_constant_stays_constant(axis) -> None:
    num_in, num_out, origin, extent = axis
    assert np.allclose(resampled(np.full(num_in, 0.7, np.float32), (num_out,), [origin], [extent]), 0.7, atol=1e-6)


@many
@given(st.integers(1, 20), st.floats(0.2, 6), st.floats(0, 1))
def test_a_ramp_keeps_its_places(num_out, step, fraction) -> None:
    """Away from the edges a position comes out as itself: exactly when finer, to 1/12 of its voxel when coarser."""
    num_in = 200
    origin = 20 + fraction * 20
    assume(origin + num_out * step < 180)
    ramp = (np.arange(num_in) + 0.5).astype(np.float32)
    expected = origin + (np.arange(num_out) + 0.5) * step
    out = resampled(ramp, (num_out,), [origin], [num_out * step])
    assert np.allclose(out, expected, atol=step / 12 if step > 1 else 1e-4)


def test_what_is_too_fine_to_see_becomes_grey_instead_of_aliasing() -> None:
    stripes = np.tile([0.0, 1.0], 64).astype(np.float32)
    for num_out in (64, 32, 21):
        inner = resampled(stripes, (num_out,), [0.0], [128.0])[2:-2]
        assert np.abs(inner - 0.5).max() < 0.06


def test_the_order_of_axes_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    voxels = generator.random((5, 9, 7), np.float32)
    weights = [generator.random((n, side), np.float32) for n, side in zip((11, 3, 7), voxels.shape, strict=True)]
    expected = np.einsum("zyx,az,by,cx->abc", voxels.astype(float), *weights)
    out = resample(voxels, weights)
    assert out.flags.c_contiguous and out.dtype == np.float32
    assert np.allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "level"),
    [
        ([1, 1, 1], 0),
        ([0.4, 0.4, 0.4], 0),  # finer than the scan: its own voxels are the best there are
        ([2, 2, 1], 0),
        ([2, 2, 2], 1),
        ([1.999, 1.999, 1.999], 1),  # but for rounding
        ([9, 9, 3.9], 1),
        ([9, 9, 4], 2),
        ([99, 99, 99], 2),
    ],
)
def test_the_level_read_is_the_coarsest_that_loses_nothing(step, level) -> None:
    assert best_level([(1, 1, 1), (1, 2, 4), (2, 4, 8)], [1.0, 1.0, 0.5], step) == level
