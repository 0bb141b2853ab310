"""MetaImage, NRRD, NumPy and pictures: as SimpleITK, NumPy and Pillow read them, turned to canonical axes."""

from __future__ import annotations

import builtins
import errno
import io
import json
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from raygenesis.archive.formats.readers import read_scan, read_scan_geometry
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from tests.support import dicom_series
from tests.support.nifti import grey, write_nifti

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


def one(path: Path, **options: Any) -> Volume:
    """The only volume of a file, after its geometry has been found to agree with it."""
    volumes = read_scan([path], **options)
    found = read_scan_geometry([path], *([options["fourth_axis"]] if "fourth_axis" in options else []))
    assert found == [(volume.shape, pytest.approx(volume.spacing_mm)) for volume in volumes]
    (volume,) = volumes
    return volume


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ScanError) as fault:
        read_scan([path], **options)
    said = str(fault.value)
    assert "\n" not in said and len(said) < 250
    return said


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
    assert "cut short or damaged" in refusal(path)
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


# --- NumPy ----------------------------------------------------------------------------------------


def write_array(path: Path, voxels: NDArray[Any], side_car: Any = None) -> Path:
    if path.suffix == ".npy":
        np.save(path, voxels)
    else:
        np.savez_compressed(path, voxels=voxels)
    if side_car is not None:
        path.with_suffix(".json").write_text(side_car if isinstance(side_car, str) else json.dumps(side_car))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_what_it_is(tmp_path: Path, suffix: str, order: str) -> None:
    voxels = np.asarray(grey((4, 5, 6), ">i2"), order=order)
    volume = one(write_array(tmp_path / f"a{suffix}", voxels, {"spacing_mm": [3, 2, 1.5], "modality": "CT"}))
    assert np.array_equal(volume.voxels, voxels) and volume.voxels.dtype == np.int16
    assert (volume.spacing_mm, volume.modality, volume.ndim) == ((3.0, 2.0, 1.5), "CT", 3)
    assert np.array_equal(volume.affine, np.diag([1.5, 2, 3, 1]))
    flat = one(write_array(tmp_path / f"flat{suffix}", voxels[0], {"spacing_mm": [2, 1.5]}))
    assert np.array_equal(flat.voxels, voxels[0]) and (flat.ndim, flat.spacing_mm) == (2, (2.0, 1.5))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_one_axis_more_is_what_the_settings_say(tmp_path: Path, suffix: str) -> None:
    voxels = grey((3, 4, 5, 6))
    path = write_array(tmp_path / f"a{suffix}", voxels, {"spacing_mm": [3, 2, 1]})
    assert "choose archive.fourth_axis=split" in refusal(path)
    assert np.array_equal(one(path, fourth_axis="channels").voxels, voxels)
    parts = read_scan([path], "split")
    assert len(read_scan_geometry([path], "split")) == 3
    assert all(np.array_equal(part.voxels, voxel) for part, voxel in zip(parts, voxels, strict=True))


@pytest.mark.parametrize(
    ("side_car", "words"),
    [
        (None, "write a .json of the same name beside it"),
        ("{", "not readable (JSONDecodeError)"),
        ("\xff", "not readable"),
        ("[1, 2]", "side-car (.json)"),
        ({}, "spacing_mm: field required"),
        ({"spacing_mm": [1, 1, 0]}, "spacing_mm.2: input should be greater than 0"),
        ({"spacing_mm": [1, 1, -1]}, "spacing_mm.2"),
        ('{"spacing_mm": [1, 1, NaN]}', "spacing_mm.2"),
        ('{"spacing_mm": [1, 1, Infinity]}', "spacing_mm.2"),
        ({"spacing_mm": [1]}, "spacing_mm"),
        ({"spacing_mm": [1, 1, 1, 1]}, "spacing_mm"),
        ({"spacing_mm": 1.0}, "spacing_mm"),
        ({"spacing_mm": "1 1 1"}, "spacing_mm"),
        ({"spacing_mm": [1, 1]}, "choose archive.fourth_axis"),
        ({"spacing_mm": [1, 1, 1], "spacings": 1}, "spacings: extra inputs are not permitted"),
        ({"spacing_mm": [1, 1, 1], "modality": "Jane Doe"}, "modality"),
        ({"spacing_mm": [1, 1, 1], "array": 3}, "array"),
    ],
)
def test_a_wrong_side_car_is_said(tmp_path: Path, side_car: Any, words: str) -> None:
    path = write_array(tmp_path / "a.npy", grey((4, 5, 6)), side_car)
    if side_car == "\xff":
        path.with_suffix(".json").write_bytes(b"\xff\xfe{")
    assert words in refusal(path)


def test_an_axis_too_few_or_two_too_many_is_said(tmp_path: Path) -> None:
    for shape in ((4, 5), (2, 2, 3, 4, 5), ()):
        path = write_array(tmp_path / "a.npy", np.zeros(shape), {"spacing_mm": [1, 1, 1]})
        assert "does not fit the 3 numbers of spacing_mm" in refusal(path)


def test_one_array_of_several_is_named_in_the_side_car(tmp_path: Path) -> None:
    path, voxels = tmp_path / "a.npz", grey((4, 5, 6))
    np.savez(path, image=voxels, label=voxels > 5)
    path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1]}')
    assert "it holds 2 arrays: name one of them" in refusal(path)
    path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1], "array": "image"}')
    assert np.array_equal(one(path).voxels, voxels)
    path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1], "array": "picture"}')
    assert "it holds 2 arrays" in refusal(path)


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = str(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_objects_are_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    objects = np.array([[[Bomb(tmp_path / "run")]]], object)
    path = write_array(tmp_path / f"a{suffix}", objects, {"spacing_mm": [1, 1, 1]})
    assert "holds Python objects" in refusal(path)
    path = tmp_path / "raw.npy"
    path.write_bytes((tmp_path / "a.npy").read_bytes()[128:] if suffix == ".npy" else b"\x80\x04N.")  # a bare pickle
    path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1]}')
    assert "cut short or damaged, or holds Python objects" in refusal(path)
    assert not (tmp_path / "run").exists()


def test_damaged_arrays_are_one_sentence(tmp_path: Path) -> None:
    for suffix in (".npy", ".npz"):
        path = write_array(tmp_path / f"a{suffix}", grey((8, 8, 8)), {"spacing_mm": [1, 1, 1]})
        content = path.read_bytes()
        for damaged in (b"", content[:7], content[: len(content) // 2], content[:-100], b"text" * 50):
            path.unlink()
            path.write_bytes(damaged)
            assert re.search("damaged|claims .* more than the file can hold", refusal(path))
    path = write_array(tmp_path / "b.npy", grey((4, 4, 4), np.complex64), {"spacing_mm": [1, 1, 1]})
    assert "not grey values" in refusal(path)


def test_an_array_that_unpacks_to_more_than_a_scan_may_have_is_refused(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.npz", np.zeros((64, 64, 64)), {"spacing_mm": [1, 1, 1]})
    assert "archive.max_scan_gib" in refusal(path, max_bytes=2**20)
    content = path.read_bytes()  # a header that claims more than the file can hold
    with zipfile.ZipFile(path, "w") as packed, packed.open("voxels.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (9999,) * 3})
    assert "more than the file can hold" in refusal(path)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as packed:
        assert packed.infolist()[0].file_size > 2**20  # else the test would show nothing


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_geometry_of_an_array_is_its_header_s(tmp_path: Path, suffix: str) -> None:
    """Nothing of its voxels is unpacked."""
    path = write_array(tmp_path / f"a{suffix}", np.zeros((2, 160, 160, 160)), {"spacing_mm": [3, 2, 1]})
    tracemalloc.start()
    try:
        assert read_scan_geometry([path], "split") == [((160, 160, 160), (3.0, 2.0, 1.0))] * 2
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# --- what may pass --------------------------------------------------------------------------------


class Failing(io.FileIO):
    """A file of which some bytes cannot be read."""

    lost, fault = range(0), Exception()

    def readinto(self, buffer: Any) -> int:
        if self.tell() < self.lost.stop and self.tell() + len(buffer) > self.lost.start:
            raise self.fault
        return super().readinto(buffer)


def written(path: Path) -> Path:
    """Noise in the format that the name says."""
    noise = np.random.default_rng(0).integers(0, 2**12, (60, 50, 40)).astype(np.uint16)
    if path.suffix == ".gz":
        return write_nifti(path, noise)
    if path.suffix == ".png":
        Image.fromarray(noise[0]).save(path)
        return path
    if path.suffix == ".dcm":
        return dicom_series.write(path, dicom_series.a_slice(noise[0]))
    return write_array(path, noise, {"spacing_mm": [1, 1, 1]})


@pytest.mark.parametrize("fault", [OSError(errno.ESTALE, "Stale file handle"), MemoryError()])
@pytest.mark.parametrize("start", [0, 1024])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz", "a.png", "a.dcm"])
def test_what_is_not_the_file_s_fault_is_not_called_damage(tmp_path, monkeypatch, name, start, fault) -> None:
    """Where a file server is lost, or memory is short, the scan is to be tried again."""
    path = written(tmp_path / name)
    read_scan([path])  # all is well
    monkeypatch.setattr(Failing, "lost", range(start, start + 2000))  # not the end, where a .npz begins
    monkeypatch.setattr(Failing, "fault", fault)

    def opening(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        is_it = str(file) == str(path) and mode == "rb"
        return io.BufferedReader(Failing(file), 512) if is_it else as_ever(file, mode, *more, **options)

    as_ever = open
    monkeypatch.setattr(builtins, "open", opening)
    monkeypatch.setattr(io, "open", opening)
    with pytest.raises(type(fault)) as raised:
        read_scan([path])
    assert raised.value is fault


# --- pictures -------------------------------------------------------------------------------------


def shown(volume: Volume) -> NDArray[Any]:
    """Rows from superior down, columns from the patient's right: as the picture is displayed."""
    return volume.voxels[..., ::-1, ::-1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_png_is_as_pillow_shows_it(tmp_path: Path, dtype: type) -> None:
    pixels = grey((6, 9), dtype) * dtype(2) if dtype == np.uint8 else grey((6, 9), dtype) * dtype(500)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = one(tmp_path / "a.png")
    assert volume.voxels.dtype == dtype and np.array_equal(shown(volume), pixels)
    assert np.array_equal(shown(volume), np.asarray(Image.open(tmp_path / "a.png")))
    assert (volume.ndim, volume.spacing_mm) == (2, (1.0, 1.0))


def test_equal_colours_are_grey_and_others_channels(tmp_path: Path) -> None:
    pixels = grey((6, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    Image.fromarray(np.repeat(pixels[..., :1], 3, -1)).save(tmp_path / "grey.png")
    colour, same = one(tmp_path / "colour.png"), one(tmp_path / "grey.png")
    assert colour.num_channels == 3 and same.num_channels == 1 and same.voxels.ndim == 2
    assert np.array_equal(shown(colour), np.moveaxis(pixels, -1, 0))
    assert np.array_equal(shown(same), pixels[..., 0])


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "L"])
def test_every_kind_of_png_is_a_picture(tmp_path: Path, mode: str) -> None:
    coloured = Image.fromarray(grey((6, 9, 3), np.uint8) * np.uint8(2))
    coloured.convert(mode).save(tmp_path / "a.png")
    again = Image.open(tmp_path / "a.png")
    assert again.mode == mode
    expected = np.asarray(again.convert("RGB" if mode in ("P", "RGBA") else "L"))
    expected = np.moveaxis(expected, -1, 0) if expected.ndim == 3 else expected
    assert np.array_equal(shown(one(tmp_path / "a.png")), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_a_jpeg_is_as_pillow_decodes_it(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.fromarray(grey((16, 24, 3), np.uint8)).convert(mode).save(tmp_path / f"a{suffix}")
    expected = np.asarray(Image.open(tmp_path / f"a{suffix}").convert("L" if mode == "L" else "RGB"))
    volume = one(tmp_path / f"a{suffix}")
    assert np.array_equal(shown(volume), np.moveaxis(expected, -1, 0) if expected.ndim == 3 else expected)


def test_a_camera_s_note_of_how_it_was_held_is_followed(tmp_path: Path) -> None:
    pixels = grey((16, 24), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    assert np.array_equal(shown(one(tmp_path / "a.jpg")), np.rot90(np.asarray(Image.open(tmp_path / "a.jpg")), -1))


def test_a_side_car_gives_a_picture_its_spacing(tmp_path: Path) -> None:
    Image.fromarray(grey((6, 9), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"spacing_mm": [0.2, 0.3], "modality": "DX"}')
    volume = one(tmp_path / "a.png")
    assert (volume.spacing_mm, volume.modality) == ((0.2, 0.3), "DX")
    assert nibabel.aff2axcodes(volume.affine)[:2] == ("R", "A")
    (tmp_path / "a.json").write_text('{"spacing_mm": [0.2, 0.3, 1]}')
    assert "spacing_mm of a picture has two numbers" in refusal(tmp_path / "a.png")


def test_a_damaged_picture_is_one_sentence(tmp_path: Path) -> None:
    Image.fromarray(grey((64, 64), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for damaged in (b"", content[:20], content[:300], b"GIF89a" + content, b"text" * 50):
        (tmp_path / "a.png").write_bytes(damaged)
        assert "picture" in refusal(tmp_path / "a.png")
    Image.fromarray(grey((64, 64), np.uint8)).save(tmp_path / "b.gif")
    (tmp_path / "b.gif").rename(tmp_path / "b.png")
    assert "not readable as a PNG or JPEG" in refusal(tmp_path / "b.png")
