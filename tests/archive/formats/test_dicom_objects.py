"""DICOM: enhanced files, projections, files that are no scans, damage; and no sentence names a patient."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import JPEGExtended12Bit

from raygenesis.archive.formats.dicom import read_series, read_series_geometry
from raygenesis.archive.formats.dicom_header import Header, read_header
from raygenesis.errors import ScanError
from tests.support.dicom_series import (
    SECRETS,
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

SC = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"

Fault = Callable[[list[Dataset]], None]


# Enhanced files, projections and files that are no scans.


def enhanced(path: Path, pixels: np.ndarray, **tags: object) -> Path:
    """An enhanced MR whose frames run downwards; the orientation is shared."""
    data = a_slice(pixels[0], **tags)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    data.SOPClassUID, data.Modality, data.NumberOfFrames = ENHANCED_MR, "MR", len(pixels)
    data.PixelData = pixels.tobytes()

    def group(name: str, **values: object) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for key, value in values.items():
            setattr(inner, key, value)
        setattr(outer, name, Items([inner]))
        return outer

    shared = group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.update(group("PixelMeasuresSequence", PixelSpacing=[0.5, 0.75]))
    shared.update(group("MREchoSequence", EffectiveEchoTime=4.5))
    data.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for number in range(len(pixels)):
        frame = group("PlanePositionSequence", ImagePositionPatient=[10, 20, 2.0 * (SLICES - number % SLICES)])
        frame.update(group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=7))
        frame.update(group("FrameContentSequence", TemporalPositionIndex=1 + number // SLICES))
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Items(frames)
    return write(path, data)


def test_enhanced_files_are_read_frame_by_frame(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "enhanced", grey())
    volume = only(read_series([path]))
    assert np.array_equal(volume.voxels, shown(grey()[::-1]))
    assert (volume.slope, volume.intercept, volume.modality, volume.tags["EchoTime"]) == (2, 7, "MR", "4.5")
    assert np.allclose(volume.affine[:, 2], [0, 0, 2, 0]) and volume.affine[2, 3] == 2
    assert_geometry([path], [volume])
    both = enhanced(tmp_path / "both", np.concatenate([grey(), grey() // 2]))
    assert "2 different slices lie at each of 5 positions" in refusal([both])
    first, second = read_series([both], "split")
    assert np.array_equal(first.voxels, volume.voxels) and np.array_equal(second.voxels, volume.voxels // 2)


def test_frames_without_positions_are_refused(tmp_path: Path) -> None:
    cine = a_slice(grey()[0], NumberOfFrames=SLICES, PixelData=grey().tobytes())
    assert "its 5 frames do not all say where they lie" in refusal([write(tmp_path / "cine", cine)])


def projection(**tags: object) -> Dataset:
    data = a_slice(grey()[0], Modality="DX", ImageType=["ORIGINAL", "PRIMARY"], **tags)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    return data


def test_a_projection_stands_as_it_is_displayed(tmp_path: Path) -> None:
    data = projection(ImagerPixelSpacing=[0.2, 0.3], PhotometricInterpretation="MONOCHROME1", ViewPosition="PA")
    path = write(tmp_path / "a", data)
    assert read_header(path) == Header(f"{STUDY}.1", "CANARY-1", "", True)
    volume = only(read_series([path]))
    assert volume.ndim == 2 and volume.spacing_mm == pytest.approx((0.2, 0.3))
    assert np.array_equal(volume.voxels, grey()[0][::-1, ::-1])  # up and right of the patient, not of the viewer
    assert np.array_equal(real(volume), 4095 - volume.voxels.astype(float))
    assert volume.tags["ViewPosition"] == "PA" and volume.corrections == ("MONOCHROME1: grey values inverted",)
    assert_geometry([path], [volume])
    two = read_series([path, write(tmp_path / "b", projection())])
    assert [image.ndim for image in two] == [2, 2]
    assert two[1].notes == ("no voxel size along 2 of 2 axes: 1 mm assumed",) and not two[1].corrections


def test_a_lone_slice_is_an_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_slice(grey()[0]))
    volume = only(read_series([path]))
    assert volume.ndim == 2 and np.array_equal(volume.voxels, grey()[0][::-1, ::-1])
    assert_geometry([path], [volume])
    assert "2 slices are not a volume" in refusal(write_all(tmp_path, series()[:2]))


@pytest.mark.parametrize(
    ("tags", "aside"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "a mosaic of slices in one image"),
        ({"Modality": "SEG"}, "a segmentation"), ({"Modality": "RTDOSE"}, "a radiotherapy dose"),
        ({"Modality": "SR", "Rows": None}, "a structured report"),
        ({"Rows": None}, "it holds no image"),
        ({"SOPClassUID": SC, "ImagePositionPatient": None}, "a secondary capture"),
        ({"SOPClassUID": f"{SC}.4", "ImageOrientationPatient": None}, "a secondary capture"), ({"SOPClassUID": SC}, ""),
        ({"SOPClassUID": SC, "ImagePositionPatient": None, "Modality": "CR", "ViewPosition": "AP"}, ""),
    ],
)  # fmt: skip
def test_what_is_no_scan_is_set_aside(tmp_path: Path, tags: dict, aside: str) -> None:
    assert read_header(write(tmp_path / "a", a_slice(grey()[0], **tags))).aside == aside


def test_a_patient_is_known_by_id_and_issuer(tmp_path: Path) -> None:
    path = write(tmp_path / "a", a_slice(grey()[0], IssuerOfPatientID="Here"))
    assert read_header(path).patient == "CANARY-1^^^Here"
    assert read_header(write(tmp_path / "a", a_slice(grey()[0]))).patient == "CANARY-1"
    for nobody in ({"PatientID": ""}, {"PatientID": "", "IssuerOfPatientID": "Here"}):
        assert read_header(write(tmp_path / "a", a_slice(grey()[0], **nobody))).patient == ""


# Damage, and who must not be named.


def every(**tags: object) -> Fault:
    def change(slices: list[Dataset]) -> None:
        for one in slices:
            for name, value in tags.items():
                setattr(one, name, value)

    return change


def one_of_them(**tags: object) -> Fault:
    return lambda slices: every(**tags)(slices[2:3])


FAULTS: dict[str, tuple[Fault, str]] = {
    "a missing slice": (lambda slices: slices.pop(3), "1 slice is missing: after slice 3 of 4 the next is 4.00 mm"),
    "uneven": (one_of_them(ImagePositionPatient=[10, 20, 5.5]), "0.50 to 3.50 mm apart, too uneven"),
    "pixels cut short": (one_of_them(PixelData=bytes(100)), "more than the file can hold|cut short: 100 of 512 bytes"),
    "no pixels": (one_of_them(PixelData=b""), "missing or cut short|more than the file can hold"),
    "far too many rows": (every(Rows=60000, Columns=60000), "claims 7,200,000,000 bytes of pixels"),
    "far too many frames": (every(NumberOfFrames=10**9), "more than the file can hold"),
    "no rows": (every(Rows=0), "an image of 1 × 0 × 16 pixels is impossible"),
    "no columns": (every(Columns=None), "its header describes no image"),
    "no spacing": (every(PixelSpacing=None), "the slices have no pixel spacing"),
    "spacing of zero": (every(PixelSpacing=[0, 1]), "not a positive number of mm"),
    "half a spacing": (every(PixelSpacing="1"), "header is damaged|PixelSpacing is not"),
    "no orientation": (every(ImageOrientationPatient=[0] * 6), "not two perpendicular directions"),
    "half an orientation": (every(ImageOrientationPatient=[1, 0, 0]), "is not 6 finite numbers"),
    "no position": (one_of_them(ImagePositionPatient=None), "1 of 5 slices have no position"),
    "64 bits": (every(BitsAllocated=64, Rows=4), "12 in 64 bits are not supported"),
    "more bits than there are": (every(BitsStored=20), "20 in 16 bits"),
    "a palette": (every(PhotometricInterpretation="PALETTE COLOR"), "neither grey nor RGB"),
    "a slope of zero": (every(RescaleSlope=0), "rescale slope of 0"),
    "a rescale of a name": (every(RescaleSlope=None, RescaleType="Canary"), ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_series_is_refused_in_one_sentence(tmp_path: Path, fault: str, capfd: pytest.CaptureFixture) -> None:
    change, words = FAULTS[fault]
    slices = series()
    change(slices)
    paths = write_all(tmp_path, slices)
    capfd.readouterr()
    if words:
        sentence = refusal(paths)
        assert any(part in sentence for part in words.split("|")), sentence
    else:
        only(read_series(paths))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [0, 100, 140, 400, 700, 900, 1300])
def test_files_that_are_cut_short_are_refused(tmp_path: Path, kept: int) -> None:
    paths = write_all(tmp_path, series())
    content = paths[2].read_bytes()
    assert len(content) > 1300
    paths[2].write_bytes(content[:kept])
    refusal(paths)
    try:
        read_header(paths[2])
    except ScanError as error:
        assert not any(secret in str(error) for secret in SECRETS)
    else:
        assert kept >= 400


@pytest.mark.filterwarnings("error")
def test_any_damage_is_read_or_refused_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    paths = write_all(tmp_path, series())
    content = paths[0].read_bytes()
    capfd.readouterr()
    for seed in range(150):
        damaged, random_ = bytearray(content), random.Random(seed)
        for _ in range(4):
            damaged[random_.randrange(len(damaged) - 512)] = random_.randrange(256)
        paths[0].write_bytes(damaged)
        for read in (lambda: read_series(paths), lambda: read_header(paths[0]), lambda: read_series_geometry(paths)):
            try:
                read()
            except ScanError as error:
                assert not any(secret in str(error) for secret in SECRETS)
    assert capfd.readouterr() == ("", "")


def test_compression_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    paths = write_all(tmp_path, run_length_encoded(), JPEGExtended12Bit)
    assert "its compression, 12-bit JPEG, is not supported: expected none, RLE" in refusal(paths)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom knows that they are wrong
def test_tags_that_hold_something_else_are_dropped(tmp_path: Path) -> None:
    wrong = {
        "Manufacturer": "Canary^Jane", "ManufacturerModelName": "x" * 65, "BodyPartExamined": "Canary^Jane",
        "ConvolutionKernel": ["I70f", "3 / sharp"], "KVP": None, "ScanningSequence": ["SE", "IR"],
        "MagneticFieldStrength": "1.50", "SequenceVariant": "canary", "StationName": "CANARY",
        "ProtocolName": "Canary", "SeriesDescription": "Canary",
    }  # fmt: skip
    tags = only(read_series(write_all(tmp_path, series(**wrong)))).tags
    assert tags == {
        "Modality": "CT", "ScanningSequence": "SE\\IR", "MagneticFieldStrength": "1.5", "SliceThickness": "2",
        "BitsStored": "12", "PhotometricInterpretation": "MONOCHROME2", "ConvolutionKernel": "I70f\\3 / sharp",
    }  # fmt: skip


def test_what_is_not_dicom_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "Canary.dcm"
    path.write_bytes(b"not a scan" * 100)
    assert refusal([path]) == "not a DICOM file"
    with pytest.raises(ScanError, match="not a DICOM file"):
        read_header(path)
