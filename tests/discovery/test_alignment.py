"""Alignment: known transforms are found in mm, to the bit each time; what cannot be aligned is refused by name."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from raygenesis.discovery.alignment import Alignment, AlignmentError, align
from raygenesis.errors import ScanError

# A body with an edge and unlike parts, in mm around its centre: where, how wide, how bright.
PARTS = [
    ((0, 0, 0), (60, 72, 52), 0.5),
    ((30, 14, -10), (20, 30, 22), 0.35),
    ((-26, -34, 12), (24, 18, 16), 0.45),
    ((8, 38, 20), (16, 18, 24), -0.3),
    ((-14, 20, -22), (22, 14, 16), 0.4),
    ((26, -36, -14), (15, 20, 20), -0.35),
]


def body(around_mm):
    """Brightness at points [..., ndim] in mm around the body's centre."""
    ndim = around_mm.shape[-1]
    return sum(
        bright * np.exp(-((((around_mm - np.array(where[:ndim])) / np.array(wide[:ndim])) ** 2).sum(-1) ** 2))
        for where, wide, bright in PARTS
    )


def image_of(shape, spacing, to_body):
    """The body as a scanner with voxels of its own shows it; to_body: mm from the corner → mm around the centre."""
    centres = np.moveaxis(np.indices(shape) + 0.5, 0, -1) * np.array(spacing)
    return np.clip(body(to_body(centres)), 0, 1).astype(np.float32)


def turned(ndim, degrees):
    if ndim == 3:
        return Rotation.from_euler("zyx", np.array([1.0, -0.6, 0.4]) * degrees, degrees=True).as_matrix()
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


SHAPES = {2: ((56, 60), (64, 44)), 3: ((28, 34, 24), (25, 28, 32))}
SPACINGS = {2: ((3.4, 3.1), (2.8, 4.6)), 3: ((6.4, 5.5, 7.5), (7.8, 7.4, 6.3))}


def case(ndim, matrix, shift):
    """Arguments of `align` for a body that lies as `matrix` and `shift` say in the scan, and the true map."""
    (one, other), (fine, wide) = SHAPES[ndim], SPACINGS[ndim]
    middle, there = np.array(one) * fine / 2, np.array(other) * wide / 2 + np.array(shift[:ndim])
    inverse = np.linalg.inv(matrix)
    reference = image_of(one, fine, lambda points: points - middle)
    scan = image_of(other, wide, lambda points: (points - there) @ inverse.T)
    return (reference, fine, scan, wide), lambda points: (points - middle) @ matrix.T + there


def places(ndim):
    """Points in the reference's body, in mm from its corner."""
    middle = np.array(SHAPES[ndim][0]) * SPACINGS[ndim][0] / 2
    return middle + np.array(list(itertools.product((-40, 0, 40), repeat=ndim)))


# --- known transforms -----------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("degrees,shift", [(0, (0, 0, 0)), (5, (6, -4, 3)), (-15, (-20, 16, 12))])
def test_a_rigid_alignment_finds_how_the_patient_lies_to_a_fraction_of_a_voxel(ndim, degrees, shift):
    arguments, truth = case(ndim, turned(ndim, degrees), shift)
    found = align(*arguments, "rigid").corresponding(places(ndim))
    assert np.linalg.norm(found - truth(places(ndim)), axis=1).max() < 0.25 * min(SPACINGS[ndim][0])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("degrees,shift", [(0, (0, 0, 0)), (12, (-15, 12, 10))])
def test_an_affine_alignment_finds_scales_and_shears_too(ndim, degrees, shift):
    shear = np.eye(ndim)
    shear[0, 1] = 0.08
    matrix = turned(ndim, degrees) @ shear @ np.diag([1.15, 0.9, 1.08][:ndim])
    arguments, truth = case(ndim, matrix, shift)
    found = align(*arguments, "affine")
    error = np.linalg.norm(found.corresponding(places(ndim)) - truth(places(ndim)), axis=1)
    assert error.max() < 0.35 * min(SPACINGS[ndim][0])
    np.testing.assert_allclose(found.matrix, matrix, atol=0.02)


def test_a_scan_turned_by_scipy_is_found_turned_as_scipy_turned_it():
    (reference, *_), _ = case(2, np.eye(2), (0, 0))
    matrix, offset = turned(2, 10), np.array([-4.0, 9.0])
    scan = ndimage.affine_transform(reference, matrix, offset, order=1)  # scan[index] = reference[matrix @ index + …]
    found = align(reference, (1, 1), scan, (1, 1), "rigid")
    index = np.array([[28.0, 30.0], [15.0, 40.0]])
    expected = np.linalg.solve(matrix, (index - offset).T).T
    np.testing.assert_allclose(found.corresponding(index + 0.5), expected + 0.5, atol=0.25)


@pytest.mark.parametrize("how", ["rigid", "affine"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_scan_lies_on_itself(ndim, how):
    (reference, spacing, _, _), _ = case(ndim, np.eye(ndim), (0, 0, 0))
    found = align(reference, spacing, reference, spacing, how)
    np.testing.assert_allclose(found.corresponding(places(ndim)), places(ndim), atol=0.05)


def test_the_same_body_in_voxels_of_another_size_has_its_places_at_the_same_mm():
    coarse = image_of((24, 30), (6.0, 5.0), lambda points: points - 72)
    fine = image_of((48, 60), (3.0, 2.5), lambda points: points - 72)
    found = align(coarse, (6.0, 5.0), fine, (3.0, 2.5), "rigid")
    # The corners are the same, the centres of the first voxels are not: half a voxel astray would be 1.5 mm.
    np.testing.assert_allclose(found.corresponding(np.array([[72.0, 72.0]])), [[72.0, 72.0]], atol=0.2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_rigid_alignment_keeps_distances_whatever_the_scales(ndim):
    arguments, _ = case(ndim, turned(ndim, 8) * 1.1, (5, -5, 5))
    found = align(*arguments, "rigid")
    np.testing.assert_allclose(found.matrix @ found.matrix.T, np.eye(ndim), atol=1e-12)
    assert np.linalg.det(found.matrix) > 0


def test_brightness_and_contrast_do_not_matter():
    (reference, fine, scan, wide), truth = case(3, turned(3, 10), (10, -8, 6))
    found = align(reference, fine, 0.1 + 0.5 * scan, wide, "rigid").corresponding(places(3))
    assert np.linalg.norm(found - truth(places(3)), axis=1).max() < 0.5 * min(fine)


def test_a_mouse_is_aligned_as_a_man_is():
    (reference, fine, scan, wide), _ = case(3, turned(3, 10), (10, -8, 6))
    man = align(reference, fine, scan, wide, "affine")
    mouse = align(reference, np.array(fine) / 16, scan, np.array(wide) / 16, "affine")
    np.testing.assert_allclose(mouse.matrix, man.matrix, atol=1e-4)
    np.testing.assert_allclose(mouse.offset_mm, man.offset_mm / 16, atol=1e-3)


@pytest.mark.parametrize("how", ["rigid", "affine"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_same_images_give_the_same_bits(ndim, how):
    arguments, _ = case(ndim, turned(ndim, 9), (8, -9, 7))
    noise = np.random.default_rng(0).normal(0, 0.02, arguments[0].shape).astype(np.float32)
    arguments = (arguments[0] + noise, *arguments[1:])
    first, second = align(*arguments, how), align(*arguments, how)
    assert first.matrix.tobytes() == second.matrix.tobytes()
    assert first.offset_mm.tobytes() == second.offset_mm.tobytes()


def test_the_number_of_cores_changes_no_bit_and_the_callers_number_of_threads_is_left_as_it_was():
    arguments, _ = case(3, turned(3, 9), (8, -9, 7))
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    found = []
    try:
        for num_threads in (1, 2, 5):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(num_threads)
            aligned = align(*arguments, "affine")
            found.append(aligned.matrix.tobytes() + aligned.offset_mm.tobytes())
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == num_threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert found[0] == found[1] == found[2]


def test_centres_of_any_number_of_axes_are_mapped():
    quarter = Alignment(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([10.0, 20.0]))
    assert quarter.corresponding(np.array([1.0, 2.0])).tolist() == [8, 21]
    assert quarter.corresponding(np.ones((4, 3, 2))).shape == (4, 3, 2)


# --- what cannot be aligned -----------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.7, np.nan])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_constant_image_is_refused_by_name(ndim, value):
    (reference, fine, scan, wide), _ = case(ndim, np.eye(ndim), (0, 0, 0))
    with pytest.raises(AlignmentError, match="the scan's coarse image has the same value everywhere"):
        align(reference, fine, np.full_like(scan, value), wide, "rigid")
    with pytest.raises(ScanError, match="the reference's coarse image has the same value everywhere"):
        align(np.full_like(reference, value), fine, scan, wide, "affine")


def test_an_image_of_no_voxels_is_refused():
    (reference, fine, scan, wide), _ = case(3, np.eye(3), (0, 0, 0))
    with pytest.raises(AlignmentError, match="the scan's"):
        align(reference, fine, scan[:0], wide, "rigid")


def test_images_with_nothing_in_common_are_refused():
    one, other = np.random.default_rng(0).random((2, 64, 64), dtype=np.float32)
    with pytest.raises(AlignmentError, match="correlation of only"):
        align(one, (2, 2), other, (2, 2), "rigid")


def test_a_scan_that_would_have_to_be_three_times_as_large_is_refused():
    (reference, fine, _, _), _ = case(2, np.eye(2), (0, 0))
    with pytest.raises(AlignmentError, match="scales it by"):
        align(reference, fine, reference, np.array(fine) * 3, "affine")


def test_a_scan_turned_further_than_patients_lie_is_refused():
    arguments, _ = case(2, turned(2, 70), (0, 0))
    with pytest.raises(AlignmentError, match="turns it by"):
        align(*arguments, "rigid")


def test_images_that_touch_at_a_corner_only_are_refused():
    one, other = np.zeros((2, 8, 8, 8), np.float32)
    one[0, 0, 0] = other[-1, -1, -1] = 1
    with pytest.raises(AlignmentError, match="of it on the reference"):
        align(one, (1, 1, 1), other, (1, 1, 1), "rigid")


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 32, 32), (32, 1, 1), (3, 4, 5), (2, 2, 2), (1, 2), (5, 32)])
def test_thin_and_tiny_images_are_aligned_or_refused_but_never_crash(shape):
    generator = np.random.default_rng(1)
    for how in ("rigid", "affine"):
        one, other = generator.random((2, *shape), dtype=np.float32)
        try:
            found = align(one, (2,) * len(shape), other, (3,) * len(shape), how)
        except AlignmentError as error:
            assert str(error).startswith("it cannot be aligned: ")
        else:
            assert np.isfinite(found.matrix).all() and np.isfinite(found.offset_mm).all()
