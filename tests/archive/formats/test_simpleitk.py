"""MetaImage and NRRD, against SimpleITK's own reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from raygenesis.archive.formats.readers import read_scan, read_scan_geometry
from raygenesis.archive.volume import Volume
from tests.support.nifti import grey
from tests.support.scan_files import one, refusal

ITK = [".mha", ".mhd", ".nrrd"]


def image_of(voxels: NDArray[Any], is_vector: bool = False) -> sitk.Image:
    """A tilted, turned image: LPS axes, as ITK counts them."""
    image = sitk.GetImageFromArray(voxels, isVector=is_vector)
    ndim = image.GetDimension()
    turn = np.eye(ndim)
    spatial = min(ndim, 3)
    if spatial == 3:
        turn[:3, :3] = Rotation.from_euler("xyz", [12, -8, 20], degrees=True).as_matrix() @ np.eye(3)[[1, 2, 0]]
        turn[:3, 1] *= -1
    else:
        turn[:2, :2] = [[0, 1], [-1, 0]]
    image.SetDirection(turn.ravel().tolist())
    image.SetSpacing([0.5, 0.8, 2.5, 1.0][:ndim])
    image.SetOrigin([-20.0, 30.0, 5.0, 0.0][:ndim])
    return image


def assert_as_itk_places_it(volume: Volume, image: sitk.Image) -> None:
    """Every voxel has the value that SimpleITK finds at its place in the world."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape[::-1]), indexing="ij"), -1).reshape(-1, volume.ndim)
    places = apply_affine(volume.affine, np.pad(index, [(0, 0), (0, 3 - volume.ndim)])) * [-1, -1, 1]
    for voxel, place in zip(index, places, strict=True):
        there = image.TransformPhysicalPointToIndex(place[: image.GetDimension()].tolist())
        value = np.atleast_1d(image[there])
        assert np.array_equal(volume.voxels[(..., *voxel[::-1])].ravel(), value)
    assert volume.voxels.size == sitk.GetArrayViewFromImage(image).size


@pytest.mark.parametrize("suffix", ITK)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_a_volume_lies_where_simpleitk_says(tmp_path: Path, suffix: str, compressed: bool, dtype: str) -> None:
    image = image_of(grey((4, 5, 6), dtype))
    sitk.WriteImage(image, tmp_path / f"a{suffix}", compressed)
    volume = one(tmp_path / f"a{suffix}")
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.voxels.dtype == (np.float32 if dtype[0] == "f" else dtype)
    assert sorted(volume.spacing_mm) == pytest.approx([0.5, 0.8, 2.5])
    assert_as_itk_places_it(volume, image)


@pytest.mark.parametrize("suffix", ITK)
def test_an_image_has_two_axes_and_keeps_its_places(tmp_path: Path, suffix: str) -> None:
    image = image_of(grey((5, 7), np.uint8))
    sitk.WriteImage(image, tmp_path / f"a{suffix}")
    volume = one(tmp_path / f"a{suffix}")
    assert (volume.ndim, sorted(volume.shape)) == (2, [5, 7])
    assert_as_itk_places_it(volume, image)


@pytest.mark.parametrize("suffix", ITK)
@pytest.mark.parametrize("shape", [(4, 5, 6), (5, 6)])
def test_channels_come_first(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    image = image_of(grey((*shape, 3), np.uint8), is_vector=True)
    sitk.WriteImage(image, tmp_path / f"a{suffix}")
    volume = one(tmp_path / f"a{suffix}")
    assert (volume.num_channels, volume.ndim) == (3, len(shape))
    assert_as_itk_places_it(volume, image)


@pytest.mark.parametrize("suffix", ITK)
def test_a_fourth_axis_is_what_the_settings_say(tmp_path: Path, suffix: str) -> None:
    series = grey((3, 4, 5, 6))
    path = tmp_path / f"a{suffix}"
    image = image_of(series)
    sitk.WriteImage(image, path)
    assert "choose archive.fourth_axis=split (time points) or channels" in refusal(path)
    parts = read_scan([path], "split")
    channels = one(path, fourth_axis="channels")
    assert len(parts) == len(read_scan_geometry([path], "split")) == channels.num_channels == 3
    for number, part in enumerate(parts):
        assert_as_itk_places_it(part, image[:, :, :, number])
        assert np.array_equal(channels.voxels[number], part.voxels)
        assert np.allclose(channels.affine, part.affine)


def header(data: str) -> str:
    return f"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = {data}\n"


@pytest.mark.parametrize(
    "data", ["../b.raw", "/etc/passwd", "below/b.raw", "LIST\nb.raw", "LIST", "b%02d.raw 1 4 1", "b*.raw", ".", "..",
             "link.raw", "gone.raw", "", "b.raw\nElementDataFile = ../b.raw", "..\\b.raw"],
)  # fmt: skip
def test_a_header_names_one_file_beside_it_and_no_other(tmp_path: Path, data: str) -> None:
    scans = tmp_path / "scans"
    (scans / "below").mkdir(parents=True)
    for seed, place in enumerate((tmp_path, scans, scans / "below")):
        (place / "b.raw").write_bytes(grey((4, 4, 4), np.uint8, seed).tobytes())
    (scans / "link.raw").symlink_to("../b.raw")
    (scans / "a.mhd").write_text(header("b.raw"))
    ours = one(scans / "a.mhd")
    assert np.array_equal(np.sort(ours.voxels, None), np.sort(grey((4, 4, 4), np.uint8, 1), None))
    (scans / "a.mhd").write_text(header(data))
    if data.startswith("b.raw\n"):  # of two lines SimpleITK takes the same one
        assert np.array_equal(one(scans / "a.mhd").voxels, ours.voxels)
        return
    assert "ElementDataFile must name one file beside the header" in refusal(scans / "a.mhd")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mha", header("../b.raw")),
        ("a.mha", header("b.raw")),
        ("a.mha", "Comment = ElementDataFile = LOCAL\n" + header("../b.raw")),
        ("a.mha", header("../b.raw").replace("ElementDataFile =", "ElementDataFile :") + "ElementDataFile = LOCAL\n"),
        ("a.mhd", header("../b.raw").replace("ElementDataFile =", "ElementDataFile :") + "ElementDataFile = b.raw\n"),
        ("a.nrrd", "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: ../b.raw\n"),
        ("a.nrrd", "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\nDATAFILE: ../b.raw\n\n"),
        ("a.nrrd", "NRRD0004\r\ntype: uchar\r\ndimension: 3\r\nsizes: 4 4 4\r\nencoding: raw\r\n"
         "data file: b.raw\r\n\r\n"),
    ],
)  # fmt: skip
def test_nothing_else_reads_another_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "scans").mkdir()
    for seed, place in enumerate((tmp_path, tmp_path / "scans")):
        (place / "b.raw").write_bytes(grey((4, 4, 4), np.uint8, seed).tobytes())
    (tmp_path / "scans" / name).write_bytes(content.encode())
    said = refusal(tmp_path / "scans" / name)
    assert "ElementDataFile" in said or "names another file for the voxels" in said


@pytest.mark.parametrize("suffix", ITK)
def test_a_damaged_itk_file_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(grey((8, 8, 8))), path, useCompression=suffix != ".mhd")
    data = tmp_path / "a.raw" if suffix == ".mhd" else path
    data.write_bytes(data.read_bytes()[:-200])
    assert ("more than the file can hold" if suffix == ".mhd" else "cut short or damaged") in refusal(path)
    path.write_bytes(b"not a scan")
    assert ("ElementDataFile" if suffix == ".mhd" else "not readable as") in refusal(path)


def test_a_header_that_claims_more_than_a_scan_may_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(grey((8, 8, 8))), path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"DimSize = 8 8 8", b"DimSize = 8000 8000 8000"))
    assert "more than the file can hold" in refusal(path)
    path.write_bytes(content)
    assert "archive.max_scan_gib" in refusal(path, max_bytes=100)
