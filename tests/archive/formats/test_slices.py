"""Stacks of slices: grouped, put in order, and laid on a regular grid where that is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from raygenesis.archive.formats.slices import Plane, SliceGrid, difference, fill, lay_out, positions
from raygenesis.errors import ScanError

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def plane(z: float = 0.0, x: float = 0.0, y: float = 0.0, **other: object) -> Plane:
    return replace(Plane((x, y, z), AXIAL, (0.5, 0.8), (12, 16)), **other)


def at(depths: Sequence[float]) -> list[Plane]:
    return [plane(z) for z in depths]


def gradient(grid: SliceGrid, planes: Sequence[Plane], direction: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The stack of an image that rises linearly along a direction (RAS), on the grid, and what it ought to be."""
    rows, columns = np.indices(planes[0].shape)
    slices = []
    for one in planes:
        across, down, _ = one.axes
        lps = np.array(one.position) + columns[..., None] * across * one.spacing[1]
        lps = lps + rows[..., None] * down * one.spacing[0]
        slices.append((lps * (-1, -1, 1) @ direction).astype(np.float32))
    z, y, x = np.indices(grid.shape)
    ras = np.stack([x, y, z], axis=-1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return fill(grid, slices), ras @ direction


def test_slices_of_one_size_orientation_and_spacing_are_one_stack() -> None:
    others = [
        plane(orientation=SAGITTAL), plane(spacing=(0.5, 0.5)), plane(shape=(16, 12)),
        plane(3.0, orientation=(1.0, 0.00004, 0.0, -0.00004, 1.0, 0.0), spacing=(0.50001, 0.8)),
    ]  # fmt: skip
    assert [difference(plane(), other) for other in others] == ["orientation", "pixel spacing", "matrix size", ""]


def test_slices_are_in_order_along_their_normal() -> None:
    assert positions(at([4.0, 0.0, 2.0, 0.001, 2.0])) == [[1, 3], [2, 4], [0]]
    sagittal = [plane(x=x, orientation=SAGITTAL) for x in (3.0, 1.0, 2.0)]
    assert positions(sagittal) == [[0], [2], [1]]  # the normal of columns towards P and rows towards I points right


@pytest.mark.parametrize("depths", [range(6), [0, 1.005, 2, 3.01, 4, 5], np.arange(5) * 0.02])
def test_even_slices_are_left_alone(depths: Sequence[float]) -> None:
    grid = lay_out(at(depths))
    assert (grid.moves, grid.sources, grid.corrections) == (None, None, ())
    assert grid.shape == (len(depths), 12, 16)
    assert np.allclose(grid.affine, [[-0.8, 0, 0, 0], [0, -0.5, 0, 0], [0, 0, depths[1], 0], [0, 0, 0, 1]], atol=0.006)


@pytest.mark.parametrize(
    ("depths", "sentence"),
    [
        ([0, 2, 4, 8, 10], "1 slice is missing: after slice 3 of 5 the next is 4.00 mm away, where 2.00 mm is usual"),
        ([0, 2, 8, 10, 12, 16], "3 slices are missing: after slice 2 of 6 the next is 6.00 mm away"),
        ([0, 2, 4, 7.1, 9], "the slices are 1.90 to 3.10 mm apart, too uneven to interpolate"),
        ([0, 2, 2.5, 4.5, 6.5], "the slices are 0.50 to 2.00 mm apart, too uneven to interpolate"),
    ],
)
def test_gaps_are_refused(depths: list[float], sentence: str) -> None:
    with pytest.raises(ScanError) as refusal:
        lay_out(at(depths))
    assert sentence in str(refusal.value)


def test_slightly_uneven_slices_are_interpolated() -> None:
    planes = at([0, 2, 4.4, 6.4, 8])
    grid = lay_out(planes)
    assert grid.corrections == ("the slices are 1.60 to 2.40 mm apart: resampled linearly to 2.00 mm",)
    voxels, expected = gradient(grid, planes, (1.0, -2.0, 3.0))
    assert np.allclose(voxels, expected, atol=1e-4)


@pytest.mark.parametrize("angle", [-20.0, -3.0, 0.6, 15.0, 30.0])
def test_gantry_tilt_is_removed(angle: float) -> None:
    """Slices tilted by an angle round the left-right axis, the table moving along z."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    planes = [plane(3.0 * z, orientation=(1, 0, 0, 0, cos, -sin), shape=(24, 16)) for z in range(5)]
    grid = lay_out(planes)
    assert grid.corrections == (f"gantry tilt of {abs(angle):.1f}° removed by linear resampling in the slices",)
    steps = grid.affine[:3, :3]
    assert np.allclose(steps.T @ steps, np.diag([0.8**2, 0.5**2, (3 * cos) ** 2]), atol=1e-9)
    voxels, expected = gradient(grid, planes, (0.5, -2.0, 1.0))
    covered = voxels > voxels.min()
    assert np.allclose(voxels[covered], expected[covered], atol=1e-3)
    assert covered.sum() >= 5 * 23 * 16 - 1


def test_a_tilt_too_small_to_matter_is_kept_in_the_affine() -> None:
    planes = [plane(3.0 * z, y=0.01 * z) for z in range(5)]
    grid = lay_out(planes)
    assert grid.moves is None and not grid.corrections
    voxels, expected = gradient(grid, planes, (0.5, -2.0, 1.0))
    assert np.allclose(voxels, expected, atol=1e-4)


def test_integers_stay_integers_and_places_outside_get_the_minimum() -> None:
    planes = [plane(2.0 * z, y=0.25 * z) for z in range(5)]
    slices = [np.full((12, 16), 100 + z, np.int16) for z in range(5)]
    voxels = fill(lay_out(planes), slices)
    assert voxels.dtype == np.int16 and voxels.shape == (5, 14, 16)
    assert [set(np.unique(one)) for one in voxels] == [{100}, *({100, 100 + z} for z in range(1, 5))]


@pytest.mark.parametrize(
    ("planes", "words"),
    [
        ([plane(z, y=2 * z) for z in range(5)], "staggered at 63°"),
        ([plane(30 * z, y=10 * z) for z in range(5)], "do not overlap"),
        ([plane(z, x=z % 2) for z in range(5)], "shifted against each other by up to"),
    ],
)
def test_slices_that_form_no_block_are_refused(planes: list[Plane], words: str) -> None:
    with pytest.raises(ScanError, match=words):
        lay_out(planes)


@pytest.mark.parametrize(
    "fault",
    [
        {"position": (math.nan, 0, 0)}, {"spacing": (0.0, 1.0)}, {"spacing": (1.0, math.inf)},
        {"orientation": (0.0,) * 6}, {"orientation": (1, 0, 0, 1, 0, 0)}, {"orientation": (math.nan,) * 6},
    ],
)  # fmt: skip
def test_numbers_that_give_no_place_are_refused(fault: dict) -> None:
    with pytest.raises(ScanError):
        plane(**fault)
