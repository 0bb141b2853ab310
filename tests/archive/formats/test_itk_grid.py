"""NRRD and MetaImage headers that leave their grid in doubt: SimpleITK takes 1 mm, and mm, and does not tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.support.nifti import grey
from tests.support.scan_files import one, refusal

VOXELS = grey((4, 5, 6), np.uint8)  # z y x
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\n"
MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1\n"
UNPLACED = "no orientation is stored: axes taken as right to left, anterior to posterior, inferior to superior"
LPS = "space: left-posterior-superior\nspace origin: (0,0,0)\n"
UM = 'space units: "um" "um" "um"\n'


def written(folder: Path, name: str, header: str, voxels: np.ndarray = VOXELS) -> Path:
    end = "\n" if name == "a.nrrd" else f"ElementDataFile = {'b.raw' if name == 'a.mhd' else 'LOCAL'}\n"
    (folder / name).write_bytes((header + end).encode() + (b"" if name == "a.mhd" else voxels.tobytes()))
    (folder / "b.raw").write_bytes(voxels.tobytes())
    return folder / name


def sized(num: int) -> str:
    return f"no voxel size along {num} of 3 axes: 1 mm assumed"


@pytest.mark.parametrize(
    ("name", "header", "spacing", "notes"),
    [
        ("a.nrrd", NRRD, (1, 1, 1), (sized(3), UNPLACED)),
        ("a.nrrd", NRRD + "spacings: 0.5 0.6 nan\n", (1, 0.6, 0.5), (sized(1), UNPLACED)),
        ("a.nrrd", NRRD + "spacings: 0.5 0.6 2\n", (2, 0.6, 0.5), (UNPLACED,)),
        ("a.nrrd", NRRD + LPS + "space directions: (0.5,0,0) (0,0.6,0) (0,0,2)\n", (2, 0.6, 0.5), ()),
        ("a.nrrd", NRRD + "space dimension: 3\nspace directions: (0.5,0,0) (0,0.6,0) (0,0,2)\n", (2, 0.6, 0.5),
         (UNPLACED,)),
        ("a.nrrd", NRRD + LPS + UM + "space directions: (500,0,0) (0,600,0) (0,0,2000)\n", (2, 0.6, 0.5), ()),
        ("a.nrrd", NRRD + 'spacings: 500 600 2000\nunits: "um" "um" "um"\n', (2, 0.6, 0.5), (UNPLACED,)),
        ("a.nrrd", NRRD + 'spacings: 0.05 0.06 0.2\nunits: "cm" "cm" "cm"\n', (2, 0.6, 0.5), (UNPLACED,)),
        ("a.mha", META, (1, 1, 1), (sized(3), UNPLACED)),
        ("a.mhd", META, (1, 1, 1), (sized(3), UNPLACED)),
        ("a.mhd", META + MATRIX + "ElementSize = 0.5 0.6 2\n", (2, 0.6, 0.5), ()),
        ("a.mha", META + MATRIX + "ElementSpacing = 0.5 0.6 2\n", (2, 0.6, 0.5), ()),
        ("a.mha", META + MATRIX + "DistanceUnits = um\nElementSpacing = 500 600 2000\n", (2, 0.6, 0.5), ()),
        ("a.mha", META + MATRIX + "DistanceUnits = cm\nElementSpacing = 0.05 0.06 0.2\n", (2, 0.6, 0.5), ()),
        ("a.mha", META + MATRIX + "DistanceUnits = ?\nElementSpacing = 0.5 0.6 2\n", (2, 0.6, 0.5), ()),
    ],
)  # fmt: skip
def test_sizes_are_in_mm_and_what_is_missing_is_noted(tmp_path: Path, name, header, spacing, notes) -> None:
    volume = one(written(tmp_path, name, header))
    assert volume.spacing_mm == pytest.approx(spacing) and volume.notes == notes and not volume.corrections
    assert np.array_equal(volume.voxels, VOXELS[:, ::-1, ::-1])


def test_the_origin_is_in_the_same_unit(tmp_path: Path) -> None:
    directions = "space directions: (500,0,0) (0,600,0) (0,0,2000)\n"
    nrrd = NRRD + LPS.replace("(0,0,0)", "(1000,2000,-3000)") + UM + directions
    mha = META + MATRIX + "Offset = 1000 2000 -3000\nDistanceUnits = um\nElementSpacing = 500 600 2000\n"
    for name, header in (("a.nrrd", nrrd), ("a.mha", mha)):
        affine = one(written(tmp_path, name, header)).affine
        # RAS of the voxel that lies most to the left and behind: 1 mm and 5 steps of 0.5, 2 mm and 4 of 0.6.
        assert np.allclose(affine, [[0.5, 0, 0, -3.5], [0, 0.6, 0, -4.4], [0, 0, 2, -3], [0, 0, 0, 1]])


def test_axes_of_channels_and_of_time_have_no_voxel_size(tmp_path: Path) -> None:
    voxels = grey((4, 5, 6, 3), np.uint8)
    four = NRRD.replace("dimension: 3\nsizes: 6 5 4", "dimension: 4\nsizes: 3 6 5 4\nkinds: RGB-color {0} {0} {0}")
    header = four.format("domain") + 'spacings: nan 500 600 2000\nunits: "" "um" "um" "um"\n'
    volume = one(written(tmp_path, "a.nrrd", header, voxels))
    assert volume.spacing_mm == pytest.approx((2, 0.6, 0.5)) and volume.notes == (UNPLACED,)
    assert np.array_equal(volume.voxels, np.moveaxis(voxels, -1, 0)[:, :, ::-1, ::-1])
    series = NRRD.replace("dimension: 3\nsizes: 6 5 4", "dimension: 4\nsizes: 6 5 4 2")
    header = series + 'spacings: 0.5 0.6 2 30\nunits: "mm" "mm" "mm" "s"\n'
    volume = one(written(tmp_path, "a.nrrd", header, grey((2, 4, 5, 6), np.uint8)), fourth_axis="channels")
    assert volume.spacing_mm == pytest.approx((2, 0.6, 0.5)) and volume.notes == (UNPLACED,)


@pytest.mark.parametrize(
    ("name", "header", "words"),
    [
        ("a.nrrd", NRRD + 'spacings: 1 1 1\nunits: "pixel" "pixel" "pixel"\n', "unit of length"),
        ("a.mhd", META + MATRIX + "ElementSpacing = 0.5 0.6 0\n", "a voxel size of 0: give its header the true one"),
        ("a.nrrd", NRRD + 'spacings: 1 1 1\nunits: "mm" "mm" "um"\n', "different units of length"),
        ("a.nrrd", NRRD + LPS + "space directions: (0,0,0) (0,1,0) (0,0,1)\n", "a voxel size of 0"),
        ("a.mha", META + MATRIX + "DistanceUnits = parsec\nElementSpacing = 1 1 1\n", "unit of length"),
        ("a.mha", META + "TransformMatrix = 1 0 0 1 0 0 0 0 1\nElementSpacing = 1 1 1\n", "affine is singular"),
    ],
)  # fmt: skip
def test_what_gives_no_place_is_refused(tmp_path: Path, name: str, header: str, words: str) -> None:
    assert words in refusal(written(tmp_path, name, header))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.nrrd", NRRD + LPS + f"space directions: (2,0,0) (0,2,0) (0,{5 * np.tan(np.radians(20))},5)\n"),
        ("a.nrrd", NRRD + LPS.replace("left-posterior", "right-anterior")
         + f"space directions: (2,0,0) (0,2,0) (0,{5 * np.tan(np.radians(20))},5)\n"),
        ("a.mha", META + f"TransformMatrix = 1 0 0 0 1 0 0 {np.sin(np.radians(20))} {np.cos(np.radians(20))}\n"
         + f"ElementSpacing = 2 2 {5 / np.cos(np.radians(20))}\n"),
    ],
)  # fmt: skip
def test_sheared_axes_are_straightened(tmp_path: Path, name: str, header: str) -> None:
    path = written(tmp_path, name, header)
    volume = one(path)
    assert volume.spacing_mm == pytest.approx((5, 2, 2), rel=1e-5) and volume.shape == (4, 5 + 3, 6)
    assert volume.corrections == ("axes that are 20.0° from perpendicular straightened by linear resampling",)
    image = sitk.ReadImage(str(path), sitk.sitkFloat64)
    checked = 0
    for index in np.argwhere(volume.voxels.transpose() > 0):
        place = (volume.affine[:3, :3] @ index + volume.affine[:3, 3]) * (-1, -1, 1)
        if all(0 <= at <= side - 1 for at, side in zip(image.TransformPhysicalPointToContinuousIndex(place), (6, 5, 4),
                                                       strict=True)):  # fmt: skip
            theirs = image.EvaluateAtPhysicalPoint(place.tolist(), sitk.sitkLinear)
            assert volume.voxels[tuple(index[::-1])] == pytest.approx(theirs, abs=0.51)
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_equal_colours_are_grey(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(np.repeat(VOXELS[..., None], 3, -1), isVector=True)
    sitk.WriteImage(image, tmp_path / f"a{suffix}")
    volume = one(tmp_path / f"a{suffix}")
    assert volume.voxels.shape == (4, 5, 6) and volume.corrections == ("three equal colour channels read as grey",)
