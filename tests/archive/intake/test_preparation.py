"""Preparation: another voxel size and less air, and every value still where it lay in the world."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from raygenesis.archive.intake.preparation import MARGIN_MM, body, crop_to_body, prepare, to_spacing
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from raygenesis.settings import ArchiveSettings
from tests.support.nifti import grey

SPACING = (2.5, 0.8, 0.5)  # z y x


def oblique(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    affine = np.eye(4)
    tilt = Rotation.from_rotvec([0.1, -0.2, 0.15]).as_matrix()
    affine[:3, :3] = tilt * [*spacing_mm[::-1], 1.0][:3]
    affine[:3, 3] = -30, 12, 7
    return affine


def world(volume: Volume) -> NDArray[np.float64]:
    """The position in mm of every voxel centre, [..., 3]."""
    index = np.stack(np.indices(volume.shape)[::-1], -1).astype(float)
    return apply_affine(volume.affine, np.pad(index, [(0, 0)] * volume.ndim + [(0, 3 - volume.ndim)]))


def ramp(places: NDArray[np.float64]) -> NDArray[np.float64]:
    return places @ [1.0, -2.0, 3.0]


def inner(array: NDArray, ndim: int = 3) -> NDArray:
    """Away from the edges, where voxels are repeated."""
    return array[(..., *[slice(3, -3)] * ndim)]


@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.0), (0.5, 0.4, 0.25), (5.0, 1.6, 1.0), (2.5, 0.8, 2.0)])
def test_a_value_keeps_its_place_in_the_world(wanted: tuple[float, ...]) -> None:
    blank = Volume(np.zeros((30, 60, 80), np.float32), oblique(SPACING))
    volume = Volume(ramp(world(blank)).astype(np.float32), blank.affine)
    out = to_spacing(volume, wanted)
    assert out.shape == tuple(round(n * s / w) for n, s, w in zip(volume.shape, SPACING, wanted, strict=True))
    assert out.spacing_mm == pytest.approx(np.array(volume.shape) * SPACING / out.shape)
    # Coarser by a number that is not whole, a place comes out to a twelfth of its voxel.
    assert np.abs(inner(out.voxels - ramp(world(out)))).max() < max(0.01, max(wanted) / 12 * 3)
    corners = [apply_affine(v.affine, -0.5 * np.ones(3)) for v in (volume, out)]
    far = [apply_affine(v.affine, np.array(v.shape[::-1]) - 0.5) for v in (volume, out)]
    assert np.allclose(*corners) and np.allclose(*far)  # the extent is kept
    assert out.corrections == ("resampled from 2.5 × 0.8 × 0.5 mm",)


def as_itk(voxels: NDArray, spacing_mm: tuple[float, ...], origin_mm: tuple[float, ...] = (0, 0, 0)) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([float(step) for step in spacing_mm[::-1]])
    image.SetOrigin([float(place) for place in origin_mm[::-1]])
    return image


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_finer_voxels_are_those_of_scipy_and_simpleitk(dtype: type) -> None:
    volume = Volume(grey((10, 12, 14), dtype), np.diag([*SPACING[::-1], 1.0]))
    out = to_spacing(volume, tuple(step / 2 for step in SPACING))
    assert out.voxels.dtype == dtype and out.shape == (20, 24, 28)
    centres = [(np.arange(2 * n) + 0.5) / 2 - 0.5 for n in volume.shape]
    grid = np.meshgrid(*centres, indexing="ij")
    expected = map_coordinates(volume.voxels.astype(float), grid, order=1, mode="nearest")
    close = 0.5 + 1e-4 if dtype == np.int16 else 1e-3
    assert np.abs(out.voxels - expected).max() <= close
    origin = [-step / 4 for step in SPACING]
    assert np.allclose(out.affine[:3, 3], origin[::-1])
    reference = as_itk(np.zeros(out.shape, np.float32), out.spacing_mm, origin)
    image = as_itk(volume.voxels.astype(np.float32), SPACING)
    theirs = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear)
    assert np.abs(inner(out.voxels - sitk.GetArrayFromImage(theirs))).max() <= close


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_integers_stay_integers_of_their_range(dtype: type) -> None:
    limits = np.iinfo(dtype)
    voxels = np.full((8, 8, 8), limits.max, dtype)
    voxels[4:] = limits.min
    out = to_spacing(Volume(voxels, np.eye(4)), (0.4, 0.7, 1.0))
    assert out.voxels.dtype == dtype
    brightest = limits.max if limits.bits < 64 else int(np.nextafter(np.float64(limits.max), 0))
    assert (out.voxels[:8] == brightest).all() and (out.voxels[-8:] == limits.min).all()
    assert (np.diff(out.voxels.astype(float), axis=0) <= 0).all()


def test_the_size_it_has_changes_nothing() -> None:
    volume = Volume(grey((5, 6, 7)), np.eye(4))
    assert to_spacing(volume, (1.0, 1.0, 1.02)) is volume
    assert prepare(volume, ArchiveSettings()) is volume


def test_spacing_of_another_dimension_is_refused() -> None:
    with pytest.raises(ScanError, match=r"archive\.spacing_mm has 3 numbers and the scan 2 dimensions"):
        to_spacing(Volume(grey((5, 6)), np.eye(4), ndim=2), (1, 1, 1))


@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_are_resampled_each_for_itself(ndim: int) -> None:
    shape, spacing, wanted = (20, 24, 22)[-ndim:], (1.0,) * ndim, (0.8,) * ndim
    voxels = np.stack([grey(shape, seed=n) for n in range(3)])
    out = to_spacing(Volume(voxels, oblique(spacing), ndim=ndim), wanted)
    assert out.num_channels == 3 and out.voxels.dtype == np.int16
    for channel in range(3):
        alone = to_spacing(Volume(voxels[channel], oblique(spacing), ndim=ndim), wanted)
        assert np.array_equal(out.voxels[channel], alone.voxels) and np.allclose(out.affine, alone.affine)


def test_a_picture_s_values_keep_their_places() -> None:
    blank = Volume(np.zeros((40, 50), np.float32), oblique((0.8, 0.5)), ndim=2)
    volume = Volume(ramp(world(blank)).astype(np.float32), blank.affine, ndim=2)
    out = to_spacing(volume, (0.4, 0.4))
    assert out.shape == (80, 62)
    assert np.abs(inner(out.voxels - ramp(world(out)), 2)).max() < 0.01
    assert np.linalg.norm(out.affine[:3, 2]) == pytest.approx(1)  # nothing happens across the picture


# --- less air -------------------------------------------------------------------------------------


def ellipsoid(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> NDArray[np.bool_]:
    """A body off the middle, and a speck of dust far from it."""
    sides = np.array(shape) * spacing_mm
    grid = [(axis + 0.5) * step for axis, step in zip(np.indices(shape), spacing_mm, strict=True)]
    return sum(((axis - side * 0.55) / (side * 0.22)) ** 2 for axis, side in zip(grid, sides, strict=True)) < 1


@pytest.mark.parametrize("shape", [(40, 90, 150), (100, 200), (300, 80, 60)])
@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_body_in_air_stays_whole_and_where_it_is(shape: tuple[int, ...], slope: float) -> None:
    ndim = len(shape)
    spacing = SPACING[-ndim:]
    body = ellipsoid(shape, spacing)
    noise = np.random.default_rng(0).normal(0, 20, shape)
    dusty = body.copy()
    dusty[(slice(0, 3),) * ndim] = True
    voxels = ((np.where(dusty, 40, -1000) + noise) * slope).astype(np.int16)
    volume = Volume(voxels, oblique(spacing), slope, ndim=ndim)
    out = crop_to_body(volume)
    assert out.voxels.size < voxels.size / 2 and out.slope == slope
    before, after = world(volume), world(out)
    start = np.rint(apply_affine(np.linalg.inv(volume.affine), after[(0,) * ndim])).astype(int)[:ndim][::-1]
    region = tuple(slice(first, first + side) for first, side in zip(start, out.shape, strict=True))
    assert np.allclose(before[region], after) and np.array_equal(voxels[region], out.voxels)
    assert body[region].sum() == body.sum()
    for axis, (part, step) in enumerate(zip(region, spacing, strict=True)):
        inside = np.flatnonzero(body.any(tuple(n for n in range(ndim) if n != axis)))
        room = (inside[0] - part.start) * step, (part.stop - 1 - inside[-1]) * step
        assert min(room) >= MARGIN_MM - 1e-6 or part.start == 0 or part.stop == shape[axis]
        assert max(room) < MARGIN_MM + 3 * step * (1 + max(shape) // 64)
    assert "cropped to the body from" in out.corrections[0]


@pytest.mark.parametrize("shape", [(40, 45, 50), (60, 80)])
def test_the_body_is_the_largest_bright_object(shape: tuple[int, ...]) -> None:
    inside = ellipsoid(shape, (1.0,) * len(shape))
    image = inside * 0.6 + 0.05 * np.random.default_rng(0).random(shape)
    image[(slice(0, 3),) * len(shape)] = 1  # brighter, and smaller
    assert np.array_equal(body(image.astype(np.float32)), inside)


def test_where_nothing_is_brighter_all_is_body() -> None:
    assert body(np.full((6, 7, 8), 0.3, np.float32)).all()
    assert body(np.zeros((6, 7), np.float32)).all()


def test_every_channel_is_cut_alike() -> None:
    body = ellipsoid((40, 50, 60), (2, 2, 2))
    voxels = np.stack([np.where(body, 100, 0), np.arange(body.size).reshape(body.shape) % 90]).astype(np.int16)
    affine = np.diag([2.0, 2, 2, 1])
    out, alone = crop_to_body(Volume(voxels, affine)), crop_to_body(Volume(voxels[0], affine))
    assert np.array_equal(out.voxels[0], alone.voxels) and out.num_channels == 2
    assert np.array_equal(out.affine, alone.affine)
    start = np.rint(out.affine[:3, 3] / 2).astype(int)[::-1]
    assert np.array_equal(out.voxels[1], voxels[(1, *map(slice, start, start + out.shape))])


def test_a_body_that_fills_the_scan_is_left_alone() -> None:
    volume = Volume(grey((20, 20, 20)), np.diag([4.0, 4, 4, 1]))
    assert crop_to_body(volume) is volume


def test_both_are_done_cropping_first_and_both_are_said() -> None:
    body = ellipsoid((40, 50, 60), (2, 2, 2))
    volume = Volume(np.where(body, 100, 0).astype(np.int16), np.diag([2.0, 2, 2, 1]))
    out = prepare(volume, ArchiveSettings(crop_to_body=True, spacing_mm=(4, 4, 4)))
    assert [text.split()[0] for text in out.corrections] == ["cropped", "resampled"]
    assert out.voxels.size < volume.voxels.size / 8
    seen = world(out)[out.voxels > 50]
    assert np.allclose(seen.mean(0), world(volume)[body].mean(0), atol=0.5)
