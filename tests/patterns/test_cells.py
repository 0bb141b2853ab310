"""Cells: what goes in comes out within half a step, and nothing else is accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numcodecs import Blosc

from raygenesis.patterns.cells import DTYPE, STEPS, decode, decode_steps, encode

many = settings(max_examples=100, deadline=None, derandomize=True, database=None)

cubes = arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=7), elements=st.floats(0, 1, width=32))
CUBE = np.random.default_rng(0).random((3, 4, 5), np.float32)


@many
@given(cubes)
def test_any_cube_comes_back_within_half_a_step(cube) -> None:
    back = decode(encode(cube), cube.shape)
    assert back.dtype == np.float32 and back.shape == cube.shape
    assert np.abs(back.astype(float) - cube).max() <= 0.5 / STEPS + 1e-7
    assert back.min() >= 0 and back.max() <= 1


@many
@given(cubes)
def test_packing_what_was_unpacked_changes_nothing(cube) -> None:
    cell = encode(cube)
    assert encode(decode(cell, cube.shape)) == cell


def test_a_cell_is_plain_blosc_of_12_bit_steps_in_c_order() -> None:
    steps = np.frombuffer(Blosc().decode(encode(CUBE)), "<u2").reshape(CUBE.shape)
    assert np.array_equal(steps, np.rint(CUBE.astype(float) * 4095))
    assert encode(np.array([0.0, 1.0, 1 / 4095], np.float32)) == encode(np.array([0.0, 1.0, 1.4 / 4095], np.float32))
    assert encode(np.asfortranarray(CUBE)) == encode(CUBE)
    assert encode(CUBE[::2, ::-1]) == encode(CUBE[::2, ::-1].copy())


def test_unpacks_into_memory_that_is_there() -> None:
    batch = np.zeros((2, *CUBE.shape), DTYPE)
    decode_steps(memoryview(encode(CUBE)), batch[1])
    assert not batch[0].any() and np.array_equal(batch[1], np.rint(CUBE * STEPS))


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 4, 6), (60, 2), (0,), ()])
def test_a_cell_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cell holds 120 bytes, not the"):
        decode(encode(CUBE), shape)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 40, -1])
def test_a_cell_cut_short_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="cut short or damaged"):
        decode(encode(CUBE)[:length], CUBE.shape)


def test_a_smooth_cube_takes_less_room_than_its_steps() -> None:
    z, y, x = np.indices((32, 32, 32)) / 31
    assert len(encode((z * y * x).astype(np.float32))) < 0.6 * 2 * 32**3
