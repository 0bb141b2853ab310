"""Grids whose axes are not perpendicular: every voxel that is covered gets what lies at its place in the world."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from raygenesis.archive.grid import Grid
from raygenesis.archive.shear import straightening
from raygenesis.archive.volume import Volume, straightened
from raygenesis.errors import ScanError
from tests.support.nifti import grey

SHAPE = (6, 14, 12)  # z y x
TURN = Rotation.from_euler("xyz", [4, -7, 12], degrees=True).as_matrix()


def sheared(angles: dict[tuple[int, int], float], steps: tuple[float, ...] = (2, 2, 5), turn=None) -> NDArray:
    """An affine whose column c has moved along axis r: angles of (r, c), in degrees, of right-angled steps x y z."""
    matrix = np.diag(np.array(steps, float))
    for (row, column), angle in angles.items():
        matrix[row, column] = math.tan(math.radians(angle)) * steps[column]
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ matrix
    affine[:3, 3] = -10, 20, 30
    return affine


def places(shape: tuple[int, ...], affine: NDArray) -> NDArray:
    """Where each voxel [*shape, 3] lies, in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape[::-1]), indexing="ij"), -1)
    return apply_affine(affine, index).transpose(2, 1, 0, 3)


CASES = {
    "slices move back": ({(1, 2): 20.0}, (2, 2, 5), None),
    "slices move forward": ({(1, 2): -13.0}, (2, 2, 5), None),
    "slices move aside, too, and all is turned": ({(0, 2): 7.0, (1, 2): 12.0}, (0.7, 0.9, 3), TURN),
    "isotropic": ({(1, 2): 9.0}, (1, 1, 1), None),
    "coronal slices": ({(2, 1): 5.0}, (1, 4, 2), None),
    "no plane is right-angled": ({(0, 1): 6.0, (1, 2): 10.0, (0, 2): 8.0}, (2, 2, 3), None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_linear_in_the_world_stays_so(case: str) -> None:
    angles, steps, turn = CASES[case]
    affine = sheared(angles, steps, turn)
    slope = np.array([1.5, -2.0, 0.5])
    volume = straightened(Volume((places(SHAPE, affine) @ slope).astype(np.float32), affine))
    axes = volume.affine[:3, :3]
    assert np.allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-9)
    assert "straightened by linear resampling" in volume.corrections[0]
    covered = volume.voxels > volume.voxels.min()
    assert np.allclose(volume.voxels[covered], (places(volume.shape, volume.affine) @ slope)[covered], atol=1e-3)
    assert covered.sum() > 0.6 * np.prod(SHAPE)
    assert Grid(SHAPE[::-1], affine).geometry == (volume.shape, volume.spacing_mm)


@pytest.mark.parametrize("case", ["slices move back", "slices move aside, too, and all is turned", "coronal slices"])
@pytest.mark.parametrize("nearest", [False, True])
def test_a_right_angled_plane_is_resampled_as_simpleitk_does(case: str, nearest: bool) -> None:
    angles, steps, turn = CASES[case]
    affine = sheared(angles, steps, turn)
    voxels = grey(SHAPE, np.int16, seed=4)
    ours = straightened(Volume(voxels, affine), is_label_map=nearest)
    image = sitk.GetImageFromArray(voxels.astype(np.float64))
    target = sitk.GetImageFromArray(np.zeros(ours.shape))
    for one, placed in ((image, affine), (target, ours.affine)):
        lengths = np.linalg.norm(placed[:3, :3], axis=0)
        one.SetSpacing(lengths.tolist())
        one.SetDirection((placed[:3, :3] / lengths).ravel().tolist())
        one.SetOrigin(placed[:3, 3].tolist())
    kind = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), kind, -1.0))
    inside = (theirs >= 0) & (ours.voxels > 0)  # half a voxel beyond the outermost centres SimpleITK still gives some
    assert inside.sum() > 0.7 * voxels.size
    assert np.abs(ours.voxels - theirs)[inside].max() <= (0 if nearest else 0.5 + 1e-6)
    assert ours.voxels.dtype == np.int16 and (not nearest or set(np.unique(ours.voxels)) <= set(np.unique(voxels)))


def test_the_spacing_is_the_distance_of_the_slices() -> None:
    volume = straightened(Volume(grey(SHAPE), sheared({(1, 2): 20.0})))
    assert volume.spacing_mm == pytest.approx((5, 2, 2)) and volume.shape == (6, 14 + 5, 12)
    assert volume.corrections == ("axes that are 20.0° from perpendicular straightened by linear resampling",)


def test_channels_move_together() -> None:
    affine, voxels = sheared({(1, 2): 20.0}), grey((2, *SHAPE))
    together = straightened(Volume(voxels, affine)).voxels
    assert together.shape == (2, 6, 19, 12)
    for channel, one in zip(together, voxels, strict=True):
        inside = straightened(Volume(one, affine)).voxels
        assert np.array_equal(channel, np.where(inside == one.min(), channel, inside))


def test_an_image_has_two_axes_and_its_slice_s_direction_counts_for_nothing() -> None:
    affine = sheared({(0, 1): 10.0, (1, 2): 30.0})
    slope = np.array([1.0, 2.0, 0.0])
    values = (places((1, 14, 12), affine) @ slope)[0].astype(np.float32)
    image = straightened(Volume(values, affine, ndim=2))
    covered = image.voxels > image.voxels.min()
    assert image.shape == (14, 12 + 3)
    assert np.allclose(image.voxels[covered], (places((1, *image.shape), image.affine) @ slope)[0][covered], atol=1e-3)
    flat = Volume(values, sheared({(1, 2): 30.0}), ndim=2)
    assert straightened(flat) is flat


def test_places_outside_are_dark_whatever_the_slope() -> None:
    for slope, expected in ((1.0, 0), (-1.0, 119)):
        volume = straightened(Volume(grey(SHAPE), sheared({(1, 2): 20.0}), slope))
        assert volume.voxels[0, -1, 0] == expected


def test_a_small_tilt_stays_in_the_affine_and_a_large_one_is_refused() -> None:
    small = Volume(grey(SHAPE), sheared({(1, 2): 0.4}))
    assert straightened(small) is small
    with pytest.raises(ScanError, match="its axes are 60° from perpendicular"):
        straightened(Volume(grey(SHAPE), sheared({(1, 2): 60.0})))
    with pytest.raises(ScanError, match="do not overlap"):
        straightening((60, 5, 5), sheared({(1, 2): 20.0}))
