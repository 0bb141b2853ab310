"""DICOM: every voxel keeps its value and its place, and what was changed is said."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from raygenesis.archive.formats.dicom import looks_like_dicom, read_series, read_series_geometry
from raygenesis.archive.formats.dicom_header import read_header
from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.intake.survey import survey
from raygenesis.errors import ScanError
from tests.support.data import SHARED
from tests.support.dicom_series import (
    SIDE,
    SLICES,
    STUDY,
    a_slice,
    assert_geometry,
    grey,
    only,
    real,
    refusal,
    run_length_encoded,
    series,
    shown,
    write,
    write_all,
)

ODD, LIDC = SHARED / "odd-dicom", SHARED / "lidc-ct"
needs_odd = pytest.mark.skipif(not ODD.is_dir(), reason=f"odd DICOM series are not at {ODD}")
needs_lidc = pytest.mark.skipif(not LIDC.is_dir(), reason=f"chest CTs are not at {LIDC}")


# Real files.

TRUTHS = ["compressed_j2k/001", "compressed_jpeg/001", "compressed_jpegls/001", "compressed_rle/001", "rgb/001",
          "siemens_multiframe/anatomical/001"]  # fmt: skip


def dicom_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.dcm"), reverse=True)


@needs_odd
@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("suffix", ["", "_reoriented"])
def test_odd_series_are_as_their_ground_truth(name: str, suffix: str) -> None:
    truth = nibabel.as_closest_canonical(nibabel.load(ODD / f"{name}_ground_truth{suffix}.nii.gz"))
    volume = only(read_series(dicom_files(ODD / name)))
    expected = np.asarray(truth.dataobj)
    if expected.dtype.names:  # the truth has an opaque alpha channel, which the files do not
        expected = np.stack([expected[colour] for colour in "RGB"], axis=-1)
    assert np.array_equal(real(volume), expected.T)
    assert np.allclose(volume.affine, truth.affine, atol=1e-3)
    assert not volume.corrections and volume.modality == "MR"
    assert_geometry(dicom_files(ODD / name), [volume])


@needs_odd
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("notavolume/001", "4 slices at 1 position are not a volume"),
        ("sliceincrement/001", "1 slice is missing: after slice 3 of 4 the next is 10.00 mm away, where 5.00 mm"),
        # Its ground truth invents the missing slice, leaves the first one empty, and takes 0.78 mm along the table
        # for the 0.75 mm between slices tilted by 15.5°: there is nothing to compare with.
        ("sliceincrement/002", "1 slice is missing: after slice 3 of 4 the next is 1.50 mm away, where 0.75 mm"),
    ],
)
def test_what_is_not_a_volume_is_refused(name: str, sentence: str) -> None:
    paths = dicom_files(ODD / "failing" / name)
    for fourth_axis in ("refuse", "split", "channels"):
        assert sentence in refusal(paths, fourth_axis)
    with pytest.raises(ScanError, match=sentence[:20]):
        read_series_geometry(paths)


@needs_odd
def test_a_tilted_ct_is_straightened() -> None:
    paths = dicom_files(ODD / "failing/gantrytilting/001")
    volume = only(read_series(paths))
    assert volume.corrections == ("gantry tilt of 14.0° removed by linear resampling in the slices",)
    spacing = np.array(volume.spacing_mm)
    assert np.allclose(spacing, [5 * 0.970295726276, 0.41796875, 0.41796875])
    steps = volume.affine[:3, :3]
    assert np.allclose(steps.T @ steps, np.diag(spacing[::-1] ** 2), atol=1e-9)
    lowest = min((dcmread(path) for path in paths), key=lambda data: data.ImagePositionPatient[2])
    unmoved = [row for row in volume.voxels[0] if row.any()]
    assert np.array_equal(np.array(unmoved), lowest.pixel_array[::-1, ::-1])
    assert_geometry(paths, [volume])


@needs_lidc
def test_chest_cts_are_as_simpleitk_reads_them() -> None:
    folders = sorted({path.parent for path in LIDC.glob("*/*/*.dcm")})
    assert len(folders) == 3
    for folder in folders:
        image = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
        volume = only(read_series(dicom_files(folder)))
        assert np.array_equal(volume.voxels.astype(np.int32) - 1024, shown(SimpleITK.GetArrayViewFromImage(image)))
        assert volume.spacing_mm == pytest.approx(image.GetSpacing()[::-1])
        corner = image.TransformIndexToPhysicalPoint((image.GetWidth() - 1, image.GetHeight() - 1, 0))
        assert np.allclose(volume.affine[:3, 3], np.array(corner) * (-1, -1, 1), atol=1e-3)
        assert volume.modality == "CT" and volume.intercept == -1024
        header = read_header(dicom_files(folder)[0])
        assert (header.series, header.aside, header.is_projection) == (folder.name, "", False)
    assert_geometry(dicom_files(folder), [volume])


# How files are written.


def assert_as_written(paths: Sequence[Path]) -> None:
    volume = only(read_series(paths))
    assert volume.voxels.dtype == np.uint16
    assert np.array_equal(volume.voxels, shown(grey()))
    expected = [[0.75, 0, 0, -10 - 15 * 0.75], [0, 0.5, 0, -20 - 15 * 0.5], [0, 0, 2, 0], [0, 0, 0, 1]]
    assert np.allclose(volume.affine, expected)
    assert (volume.slope, volume.intercept, volume.ndim, volume.corrections) == (1, -1024, 3, ())
    assert volume.modality == "CT"
    assert volume.tags == {
        "Modality": "CT", "KVP": "120", "SliceThickness": "2", "BitsStored": "12",
        "PhotometricInterpretation": "MONOCHROME2", "Manufacturer": "Ray (Works) 2.0",
    }  # fmt: skip
    assert_geometry(paths, [volume])
    headers = [read_header(path) for path in paths]
    assert {(one.series, one.patient, one.aside, one.is_projection) for one in headers} == {
        (f"{STUDY}.1", "CANARY-1", "", False)
    }
    assert len({one.stack for one in headers}) == 1 and {one.depth_mm for one in headers} == {0, 2, 4, 6, 8}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_any_little_endian_file_is_read(tmp_path: Path, syntax: str) -> None:
    assert_as_written(write_all(tmp_path, series(), syntax))


BOMB = bytes(2**27)


@pytest.mark.parametrize(
    ("tags", "is_header_read", "reason"),
    [
        ({"PixelData": BOMB}, True, "holds more bytes than its header describes"),
        ({"PixelData": BOMB, "Rows": 8192, "Columns": 8192}, True, "more than archive.max_scan_gib="),
        ({"PixelData": BOMB, "Rows": 65535, "Columns": 65535}, True, "more than the file can hold"),
        ({}, False, "describes no image"),
    ],
)
def test_a_deflated_bomb_is_unpacked_as_far_as_its_header_goes(
    tmp_path: Path, tags: dict[str, object], is_header_read: bool, reason: str
) -> None:
    (tmp_path / "scans").mkdir()
    one = a_slice(grey()[0], **tags)
    if not is_header_read:  # in front of what describes the image
        one.add_new(0x00090010, "UT", "x" * 2**25)
    path = write(tmp_path / "scans" / "a.dcm", one, DeflatedExplicitVRLittleEndian)
    del one
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        found = survey(path.parent)
        assert len(found.scans) == is_header_read and len(found.aside) == (not is_header_read)
        with pytest.raises(ScanError, match=reason):
            read_series([path], max_bytes=2**26)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    slices = series()
    for one, pixels in zip(slices, grey(), strict=True):
        one.PixelData = pixels.astype(">u2").tobytes()
    assert_as_written(write_all(tmp_path, slices, ExplicitVRBigEndian))


def test_rle_files_are_read(tmp_path: Path) -> None:
    assert_as_written(write_all(tmp_path, run_length_encoded(), RLELossless))


def test_a_series_that_unpacks_to_more_than_a_scan_may_have_is_not_decoded(tmp_path: Path) -> None:
    voxels = np.zeros((SLICES, 256, 256), np.uint16)
    nothing = encapsulate([bytes(64)])  # who decodes it finds that it is damaged
    paths = write_all(tmp_path, series(voxels, PixelData=nothing), RLELossless)
    with pytest.raises(ScanError, match=f"^{voxels.nbytes:,} bytes of voxels are more than archive.max_scan_gib="):
        read_scan(paths, max_bytes=voxels.nbytes - 1)
    with pytest.raises(ScanError, match=r"file 1 of 5 in order of name: .* damaged"):
        read_scan(paths, max_bytes=voxels.nbytes)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "YBR_FULL_422"])
def test_baseline_jpeg_is_read_as_grey_or_rgb(tmp_path: Path, photometric: str) -> None:
    samples = 1 if photometric == "MONOCHROME2" else 3
    ramp = np.linspace(0, 255, SIDE)
    image = np.stack([ramp + 0 * ramp[:, None], 255 - ramp + 0 * ramp[:, None], ramp[:, None] + 0 * ramp], -1)
    image = image.astype(np.uint8)[..., :samples]
    packed = io.BytesIO()
    Image.fromarray(image.squeeze()).save(packed, "JPEG", quality=95)
    slices = series(
        np.broadcast_to(image, (SLICES, *image.shape)), SamplesPerPixel=samples, PlanarConfiguration=0,
        PhotometricInterpretation=photometric, PixelData=encapsulate([packed.getvalue()]),
    )  # fmt: skip
    volume = only(read_series(write_all(tmp_path, slices, JPEGBaseline8Bit)))
    expected = np.moveaxis(image[::-1, ::-1], -1, 0)[:, None]
    assert volume.num_channels == samples and volume.voxels.dtype == np.uint8
    assert np.abs(volume.voxels.reshape(samples, SLICES, SIDE, SIDE) - expected.astype(int)).max() < 16


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_files_without_a_preamble_are_read(tmp_path: Path, implicit: bool, little: bool) -> None:
    slices = series()
    for number, (one, pixels) in enumerate(zip(slices, grey(), strict=True)):
        one.PixelData = pixels.astype("<u2" if little else ">u2").tobytes()
        one.save_as(tmp_path / str(number), implicit_vr=implicit, little_endian=little)
    assert_as_written(sorted(tmp_path.iterdir()))


def test_what_looks_like_dicom() -> None:
    assert looks_like_dicom(bytes(128) + b"DICM")
    for head in (b"\x08\0\x05\0CS\x0a\0", b"\x02\0\0\0UL\4\0", b"\0\x08\0\x05CS\0\x0a", b"\x08\0\x05\0\x0a\0\0\0"):
        assert looks_like_dicom(head + bytes(124))
    for head in (b"", b"\x08\0", bytes(200), b"\x89PNG\r\n\x1a\n" + bytes(124), b"\\x08\0\xff\xffCS", b"text" * 50):
        assert not looks_like_dicom(head)


# What slices hold.


def test_signed_values_of_fewer_bits_than_stored_keep_their_sign(tmp_path: Path) -> None:
    voxels = grey().astype(np.int16) - 2048
    slices = series(voxels)
    for one, pixels in zip(slices, voxels, strict=True):
        one.PixelData = (pixels & 0x0FFF).astype(np.uint16).tobytes()  # as some scanners write them: not extended
    volume = only(read_series(write_all(tmp_path, slices)))
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, shown(voxels))


def test_overlays_in_unused_bits_are_left_out(tmp_path: Path) -> None:
    slices = series(grey() | 0xA000)
    assert np.array_equal(only(read_series(write_all(tmp_path, slices))).voxels, shown(grey()))
    shifted = series(grey() << 4, HighBit=15)
    assert np.array_equal(only(read_series(write_all(tmp_path / "high", shifted))).voxels, shown(grey()))


def test_duplicates_are_dropped(tmp_path: Path) -> None:
    slices = series()
    again = [a_slice(grey()[1], 1), a_slice(grey()[3], 3, SOPInstanceUID=f"{STUDY}.9"), a_slice(grey()[4], 4)]
    volume = only(read_series(write_all(tmp_path, slices + again)))
    assert np.array_equal(volume.voxels, shown(grey()))
    assert volume.corrections == ("1 duplicate slice dropped", "2 duplicate slices dropped")
    assert_geometry(list(tmp_path.iterdir()), [volume])


def test_rescaling_that_differs_is_applied(tmp_path: Path) -> None:
    slices = series(Modality="PT")
    for number, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = 0.5 + number, number
    volume = only(read_series(write_all(tmp_path, slices)))
    numbers = np.arange(SLICES)[:, None, None]
    assert volume.voxels.dtype == np.float32 and (volume.slope, volume.intercept) == (1, 0)
    assert np.allclose(volume.voxels, shown(grey() * (0.5 + numbers) + numbers))
    assert volume.corrections == ("rescaling that differs between slices was applied: voxels are real values",)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_monochrome1_inverts_what_is_not_measured(tmp_path: Path, modality: str) -> None:
    slices = series(PhotometricInterpretation="MONOCHROME1", Modality=modality)
    volume = only(read_series(write_all(tmp_path, slices)))
    assert np.array_equal(volume.voxels, shown(grey()))
    stored = grey().astype(int)
    expected = stored if modality == "CT" else 4095 - stored
    assert np.array_equal(real(volume), shown(expected - 1024))
    assert volume.corrections == (() if modality == "CT" else ("MONOCHROME1: grey values inverted",))


def colours(equal: bool) -> list[Dataset]:
    rgb = np.random.default_rng(0).integers(0, 256, (SLICES, SIDE, SIDE, 1 if equal else 3)).astype(np.uint8)
    rgb = np.broadcast_to(rgb, (SLICES, SIDE, SIDE, 3))
    return series(rgb, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB", RescaleIntercept=0)


def test_colours_are_channels_unless_they_are_grey(tmp_path: Path) -> None:
    slices = colours(equal=False)
    volume = only(read_series(write_all(tmp_path, slices)))
    assert volume.voxels.shape == (3, SLICES, SIDE, SIDE) and volume.num_channels == 3
    expected = np.stack([np.frombuffer(one.PixelData, np.uint8).reshape(SIDE, SIDE, 3) for one in slices])
    assert np.array_equal(volume.voxels, np.moveaxis(expected[:, ::-1, ::-1], -1, 0))
    grey_volume = only(read_scan(write_all(tmp_path / "grey", colours(equal=True))))
    assert grey_volume.voxels.shape == (SLICES, SIDE, SIDE)
    assert grey_volume.corrections == ("three equal colour channels read as grey",)


# Which slices make a volume.


def test_orientations_are_volumes_of_their_own(tmp_path: Path) -> None:
    sagittal = series(grey()[:, :8], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    for number, one in enumerate(sagittal):
        one.SOPInstanceUID, one.ImagePositionPatient = f"{STUDY}.3.{number}", [3 * number, 0, 0]
    paths = write_all(tmp_path, series() + sagittal)
    volumes = read_series(paths)
    assert sorted(volume.shape for volume in volumes) == [(5, 16, 16), (8, 16, 5)]
    assert not volumes[0].corrections
    assert sorted(read_series_geometry(paths)) == [((5, 16, 16), (2, 0.5, 0.75)), ((8, 16, 5), (0.5, 0.75, 3))]
    few = write_all(tmp_path / "few", series() + sagittal[:2])
    volume = only(read_series(few))
    assert np.array_equal(volume.voxels, shown(grey()))
    assert volume.corrections == ("2 slices of another matrix size left out",)
    with_gap = write_all(tmp_path / "gap", series() + sagittal[:2] + sagittal[3:])
    assert (
        only(read_series(with_gap))
        .corrections[0]
        .startswith("4 slices of another matrix size left out: 1 slice is missing")
    )


def test_slices_in_all_directions_are_not_a_volume(tmp_path: Path) -> None:
    slices = series()[:4]
    for number, one in enumerate(slices):
        angle = 0.3 * number
        one.ImageOrientationPatient = [np.cos(angle), np.sin(angle), 0, 0, 0, 1]
        one.ImageOrientationPatient = [round(value, 9) for value in one.ImageOrientationPatient]
    assert refusal(write_all(tmp_path, slices)) == "4 slices in 4 orientations are not a volume"


def time_points(by: str) -> list[Dataset]:
    """Two time points, the later one 1 brighter; InstanceNumber tells nothing where another tag does."""
    slices = series(grey() // 2) + series(grey() // 2 + 1)
    for number, one in enumerate(slices):
        one.SOPInstanceUID, one.RescaleIntercept = f"{STUDY}.4.{number}", 0
        one.InstanceNumber = number if by == "InstanceNumber" else 10 - number
        setattr(one, by, number if by == "InstanceNumber" else 1 + number // SLICES)
    return slices


@pytest.mark.parametrize("by", ["TemporalPositionIdentifier", "EchoTime", "AcquisitionNumber", "InstanceNumber"])
def test_time_points_are_refused_split_or_channels(tmp_path: Path, by: str) -> None:
    paths = write_all(tmp_path, time_points(by))
    sentence = refusal(paths)
    assert "2 different slices lie at each of 5 positions" in sentence and "archive.fourth_axis=split" in sentence
    first, second = read_series(paths, "split")
    assert np.array_equal(first.voxels, shown(grey() // 2)) and np.array_equal(second.voxels, first.voxels + 1)
    if by == "EchoTime":
        assert (first.tags[by], second.tags[by]) == ("1", "2")
    together = only(read_series(paths, "channels"))
    assert np.array_equal(together.voxels, np.stack([first.voxels, second.voxels])) and together.ndim == 3
    assert np.allclose(together.affine, first.affine)
    assert read_series_geometry(paths) == [(first.shape, pytest.approx(first.spacing_mm))]


def test_time_points_that_are_alike_at_one_position_are_not_copies(tmp_path: Path) -> None:
    slices = time_points("EchoTime")
    slices[SLICES].PixelData = slices[0].PixelData
    paths = write_all(tmp_path, slices)
    assert "2 different slices lie at each of 5 positions" in refusal(paths)
    first, second = read_series(paths, "split")
    assert np.array_equal(first.voxels[0], second.voxels[0]) and np.array_equal(first.voxels[1:] + 1, second.voxels[1:])
    assert not first.corrections


def test_incomplete_time_points_are_refused(tmp_path: Path) -> None:
    paths = write_all(tmp_path, time_points("EchoTime")[:-2])
    assert "1 to 2 different slices lie at each of 5 positions" in refusal(paths)
    assert "incomplete: 1 to 2 slices" in refusal(paths, "split")


def test_a_tilted_gradient_is_straightened(tmp_path: Path) -> None:
    """An image that rises by 40 per mm of height and falls towards posterior, in slices tilted by 20°."""
    cos, sin = np.cos(np.radians(20)), np.sin(np.radians(20))
    rows = np.arange(SIDE)[:, None] * 0.5 + np.zeros(SIDE)
    values = [3000 - 60 * rows * cos + 40 * (2 * number - rows * sin) for number in range(SLICES)]
    slices = series(np.rint(values).astype(np.uint16), RescaleIntercept=0)
    for number, one in enumerate(slices):
        one.ImagePositionPatient = [0, 0, 2 * number]
        one.ImageOrientationPatient = [1, 0, 0, 0, round(cos, 9), round(-sin, 9)]
    volume = only(read_series(write_all(tmp_path, slices)))
    assert volume.corrections == ("gantry tilt of 20.0° removed by linear resampling in the slices",)
    z, y, x = np.indices(volume.shape)
    ras = np.stack([x, y, z], axis=-1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    expected = 3000 + 60 * ras[..., 1] + 40 * ras[..., 2]
    inside = volume.voxels > volume.voxels.min()
    assert np.abs(volume.voxels - expected)[inside].max() <= 1.5  # rounded twice
    assert inside.sum() >= SLICES * (SIDE - 1) * SIDE - 1
