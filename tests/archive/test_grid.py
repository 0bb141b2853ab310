"""Grids: from what a header says to places in mm, with what was assumed."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from raygenesis.archive.grid import MM_PER_UNIT, Grid, grid_of_steps, mm_per, no_voxel_size
from raygenesis.errors import ScanError
from tests.support.nifti import grey

ORIGIN = (10.0, -20.0, 30.0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_voxels_keep_their_places_as_nibabel_turns_them(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    directions = np.eye(3)[:, list(order)] * signs
    grid = grid_of_steps((4, 5, 6), directions, (0.5, 1.5, 3.0), ORIGIN, 3)
    stored = grey((4, 5, 6))
    theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(stored, grid.affine))
    voxels, affine = grid.turned(stored)
    assert np.array_equal(voxels.T, np.asarray(theirs.dataobj)) and np.allclose(affine, theirs.affine)
    assert grid.geometry == (voxels.shape, pytest.approx(theirs.header.get_zooms()[::-1]))
    assert not grid.notes and not grid.corrections


def test_without_an_origin_the_middle_lies_at_0() -> None:
    affine = grid_of_steps((5, 4, 3), np.diag([-1, 1, 1]), (2, 3, 4), None, 3).affine
    assert np.allclose(apply_affine(affine, [2, 1.5, 1]), 0)


@pytest.mark.parametrize("unknown", [0.0, np.nan, np.inf])
def test_a_missing_size_is_1_mm_and_noted_whatever_the_unit(unknown: float) -> None:
    grid = grid_of_steps((4, 5, 6), np.eye(3), (500, 500, unknown), ORIGIN, 3, mm_per("um"))
    assert grid.geometry.spacing_mm == pytest.approx((1.0, 0.5, 0.5))
    assert np.allclose(grid.affine[:3, 3], np.array(ORIGIN) / 1000)
    assert grid.notes == ("no voxel size along 1 of 3 axes: 1 mm assumed",)
    assert not grid_of_steps((4, 5, 1), np.eye(3), (0.5, 0.5, unknown), ORIGIN, 2).notes


def test_units_have_many_names() -> None:
    assert [mm_per(unit) for unit in ("m", "CM", " mm", "um", "µm", "μm", "microns", "Micrometers", "nm")] == [
        1000, 10, 1, 0.001, 0.001, 0.001, 0.001, 0.001, 1e-6,
    ]  # fmt: skip
    assert all(name == name.lower() for name in MM_PER_UNIT)
    for unit in ("furlong", "s", "pixel", ""):
        with pytest.raises(ScanError, match="expected m, cm, mm, um or nm") as error:
            mm_per(unit)
        assert not unit or unit not in str(error.value).split()


def test_axes_that_give_no_place_are_refused() -> None:
    for directions in (np.zeros((3, 3)), np.ones((3, 3)), np.diag([1, 1, np.nan])):
        with pytest.raises(ScanError, match="affine is singular or not finite"):
            grid_of_steps((4, 5, 6), directions, (1, 1, 1), ORIGIN, 3)
    with pytest.raises(ScanError, match="affine is singular"):
        Grid((2, 2, 2), np.diag([1.0, 1.0, 0.0, 1.0]))


def test_nothing_unknown_is_no_note() -> None:
    assert no_voxel_size(0, 3) == ()
