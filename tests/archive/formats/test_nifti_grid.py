"""NIfTI headers that leave their grid in doubt: the right place, and a word of what was put right or assumed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from raygenesis.archive.volume import Volume
from tests.support.nifti import HEADER_BYTES, nifti_bytes, write_nifti
from tests.support.scan_files import one, refusal

SHAPE = (20, 24, 16)
VOXELS = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
MM = 2  # code of millimetres
QFORM = {"sform_code": 0, "qform_code": 1, "pixdim": [1, 2, 2, 3, 0, 0, 0, 0]}


def scan(folder: Path, affine: Any = AFFINE, **fields: Any) -> Path:
    return write_nifti(folder / "scan.nii", VOXELS, affine, **{"xyzt_units": MM, **fields})


def doubts(volume: Volume) -> tuple[str, ...]:
    return (*volume.corrections, *volume.notes)


def test_a_scan_without_doubt_has_no_word(tmp_path: Path) -> None:
    volume = one(scan(tmp_path))
    assert np.array_equal(volume.voxels.T, VOXELS) and not doubts(volume)


@pytest.mark.parametrize("packed", [False, True])
def test_voxels_that_begin_at_byte_0_are_read_where_headers_end(tmp_path: Path, packed: bool) -> None:
    path = write_nifti(tmp_path / f"scan.nii{'.gz' * packed}", VOXELS, AFFINE, vox_offset=0, xyzt_units=MM)
    volume = one(path)
    assert np.array_equal(volume.voxels.T, VOXELS)
    said = "the header says that voxels begin at byte 0: read from byte 352, where headers end"
    assert doubts(volume) == (said,)


def test_of_nifti_2_headers_end_at_byte_544(tmp_path: Path) -> None:
    content = bytearray(nibabel.Nifti2Image(VOXELS, AFFINE).to_bytes())
    content[168:176] = struct.pack("<q", 0)
    (tmp_path / "a.nii").write_bytes(content)
    volume = one(tmp_path / "a.nii")
    assert np.array_equal(volume.voxels.T, VOXELS) and "read from byte 544" in volume.corrections[0]


def test_voxels_before_the_end_of_the_header_or_behind_an_unknown_extension_are_refused(tmp_path: Path) -> None:
    assert "vox offset" in refusal(scan(tmp_path, vox_offset=100))
    content = bytearray(nifti_bytes(VOXELS, AFFINE, vox_offset=0))
    content[HEADER_BYTES] = 1
    (tmp_path / "scan.nii").write_bytes(content)
    assert "begin at byte 0, and what else its header holds" in refusal(tmp_path / "scan.nii")


def test_a_sheared_scan_is_straightened_to_the_distance_of_its_slices(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[1, 2] = 5 * np.tan(np.radians(20))
    volume = one(scan(tmp_path, affine))
    assert volume.spacing_mm == pytest.approx((5, 2, 2)) and np.allclose(volume.affine[:3, :3], np.diag([2, 2, 5]))
    assert volume.corrections == ("axes that are 20.0° from perpendicular straightened by linear resampling",)
    image = sitk.GetImageFromArray(VOXELS.T.astype(np.float64))
    image.SetSpacing([2, 2, float(np.hypot(affine[1, 2], 5))])
    image.SetDirection((affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).ravel().tolist())
    for index in np.argwhere(volume.voxels.T > 0)[::97]:
        place = (volume.affine[:3, :3] @ index + volume.affine[:3, 3]).tolist()
        theirs = image.EvaluateAtPhysicalPoint(place, sitk.sitkLinear)
        assert volume.voxels[tuple(index[::-1])] == pytest.approx(theirs, abs=0.51)


ONE_ASSUMED = "no voxel size along 1 of 3 axes: 1 mm assumed"
UNPLACED = "no orientation is stored: axes taken as right to left, anterior and superior"


@pytest.mark.parametrize("size", [0, np.nan])
def test_a_missing_voxel_size_is_noted(tmp_path: Path, size: float) -> None:
    sizes = [1, 2, 2, size, 0, 0, 0, 0]
    volume = one(scan(tmp_path, **{**QFORM, "pixdim": sizes}))
    assert volume.spacing_mm == (1, 2, 2) and doubts(volume) == (ONE_ASSUMED,)
    volume = one(scan(tmp_path, sform_code=0, pixdim=sizes))
    assert volume.spacing_mm == (1, 2, 2) and doubts(volume) == (UNPLACED, ONE_ASSUMED)
    volume = one(scan(tmp_path, pixdim=sizes))
    assert volume.spacing_mm == (3, 2, 2) and not doubts(volume)  # the sform says it


def test_without_orientation_places_are_nibabel_s(tmp_path: Path) -> None:
    path = scan(tmp_path, sform_code=0)
    volume, theirs = one(path), nibabel.as_closest_canonical(nibabel.load(path))
    assert np.array_equal(volume.voxels.T, np.asarray(theirs.dataobj)) and np.allclose(volume.affine, theirs.affine)
    assert doubts(volume) == (UNPLACED,)


@pytest.mark.parametrize("qfac", [1, -1, 0])
def test_a_qform_places_voxels_as_nibabel_does(tmp_path: Path, qfac: int) -> None:
    fields = {"quatern_b": 0.1, "quatern_c": -0.2, "quatern_d": 0.15, "qoffset_x": -30, "qoffset_y": 12, "qoffset_z": 7}
    path = scan(tmp_path, **QFORM | {"pixdim": [qfac, 2, 2, 3, 0, 0, 0, 0]}, **fields)
    volume, theirs = one(path), nibabel.as_closest_canonical(nibabel.load(path))
    assert np.array_equal(volume.voxels.T, np.asarray(theirs.dataobj))
    assert np.allclose(volume.affine, theirs.affine, atol=1e-5) and not doubts(volume)


def test_a_negative_size_is_taken_as_positive(tmp_path: Path) -> None:
    volume = one(scan(tmp_path, **QFORM | {"pixdim": [1, 2, -2, 3, 0, 0, 0, 0]}))
    assert volume.spacing_mm == (3, 2, 2) and doubts(volume) == ("negative voxel sizes taken as positive",)


def test_a_quaternion_longer_than_1_by_rounding_has_no_real_part(tmp_path: Path) -> None:
    half = 0.70710695
    volume = one(scan(tmp_path, **QFORM, quatern_c=half, quatern_d=half))
    # Half a turn round the middle between y and z: x goes to −x, y to z, z to y.
    assert volume.shape == (24, 16, 20) and volume.spacing_mm == pytest.approx((2, 3, 2))
    assert np.array_equal(volume.voxels, np.transpose(VOXELS, (1, 2, 0))[..., ::-1])
    assert volume.corrections == ("a quaternion longer than 1 by rounding shortened to 1",)
    words = "its quaternion is longer than 1, so the orientation is unknown"
    assert refusal(scan(tmp_path, **QFORM, quatern_b=0.8, quatern_c=0.8)) == words
    assert refusal(scan(tmp_path, **QFORM, quatern_b=np.nan)) == words


def test_sform_against_qform_is_noted(tmp_path: Path) -> None:
    both = {"qform_code": 1, "pixdim": [1, 2, 2, 3, 0, 0, 0, 0]}
    assert not doubts(one(scan(tmp_path, **both)))
    assert not doubts(one(scan(tmp_path, **both, qoffset_x=0.9)))  # less than half of a voxel
    differing = [{"qoffset_x": 1.1}, {"quatern_d": 1.0}, {"quatern_b": 0.8, "quatern_c": 0.8}, {"quatern_d": 0.1}]
    for fields in differing:
        volume = one(scan(tmp_path, **both, **fields))
        assert np.array_equal(volume.voxels.T, VOXELS) and np.allclose(volume.affine, AFFINE)
        assert doubts(volume) == ("sform and qform differ: sform taken",)
    volume = one(scan(tmp_path, pixdim=[1, 2, 2, 4, 0, 0, 0, 0]))
    assert volume.spacing_mm == (3, 2, 2) and doubts(volume) == ("sform and voxel sizes differ: sform taken",)


def test_an_sform_of_nothing_gives_way_to_the_qform(tmp_path: Path) -> None:
    nothing = {"srow_x": np.zeros(4), "srow_y": np.zeros(4), "srow_z": np.zeros(4)}
    volume = one(scan(tmp_path, **nothing, qform_code=1, pixdim=[1, 2, 2, 3, 0, 0, 0, 0]))
    assert volume.spacing_mm == (3, 2, 2) and np.array_equal(volume.voxels.T, VOXELS)
    assert doubts(volume) == ("the sform gives voxels no place: qform taken",)
    assert "affine is singular" in refusal(scan(tmp_path, **nothing))


@pytest.mark.parametrize(("code", "mm"), [(1, 1000.0), (2, 1.0), (3, 0.001), (0, 1.0), (7, 1.0)])
def test_a_unit_of_length_is_followed_and_its_absence_noted(tmp_path: Path, code: int, mm: float) -> None:
    for placed in ({}, QFORM):
        volume = one(scan(tmp_path, xyzt_units=code, **placed))
        assert volume.spacing_mm == pytest.approx((3 * mm, 2 * mm, 2 * mm))
        assert doubts(volume) == (() if code in (1, 2, 3) else ("no unit of length is stored: mm assumed",))


def test_equal_colours_are_grey(tmp_path: Path) -> None:
    grey = np.repeat((VOXELS % 256).astype(np.uint8)[..., None], 3, -1)
    path = write_nifti(tmp_path / "a.nii", grey.view([(name, "u1") for name in "RGB"])[..., 0], xyzt_units=MM)
    volume = one(path)
    assert np.array_equal(volume.voxels.T, grey[..., 0])
    assert doubts(volume) == ("three equal colour channels read as grey",)
