"""SIIM-ACR: relative run lengths down the columns, and one subject a patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from raygenesis.transfer.targets.siim import RunLengths, decode, read

SIDE = 1024
UID = "1.2.276.0.7230010.3.1.4.8323329.{}"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def encode(mask: np.ndarray) -> str:
    """Pixel after pixel down the columns, each run's start counted from the end of the one before."""
    runs, start, last_end = [], None, 0
    pixels = [int(mask[row, column]) for column in range(mask.shape[1]) for row in range(mask.shape[0])]
    for place, pixel in enumerate([*pixels, 0]):
        if pixel and start is None:
            start = place
        elif not pixel and start is not None:
            runs += [start - last_end, place - start]
            start, last_end = None, place
    return " ".join(map(str, runs))


def write_image(folder: Path, number: int, patient: str = "", pixels: np.ndarray | None = None, **tags: object) -> str:
    """A radiograph as published: a secondary capture of modality CR, with a view position, without a place."""
    uid = UID.format(number)
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = SECONDARY_CAPTURE, uid, f"{uid}.2"
    data.PatientID, data.Modality, data.ViewPosition = patient, "CR", "PA"
    pixels = np.zeros((SIDE, SIDE), np.uint8) if pixels is None else pixels
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelSpacing, data.PixelData = [0.168, 0.168], pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = SECONDARY_CAPTURE, uid
    path = folder / "dicom-images-train" / f"{uid}.1" / f"{uid}.2" / f"{uid}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return uid


def write_table(folder: Path, *rows: str, header: str = "ImageId, EncodedPixels") -> None:
    """As published, with a blank before each second name and value."""
    (folder / "train-rle.csv").write_text("\n".join([header, *rows, ""]))


@given(st.data(), st.integers(1, 9), st.integers(1, 9))
def test_decoding_undoes_encoding(data: st.DataObject, height: int, width: int) -> None:
    pixels = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width).filter(any))
    mask = np.array(pixels, np.uint8).reshape(height, width)
    np.testing.assert_array_equal(decode(encode(mask), (height, width)), mask)


@given(st.text(alphabet="0123456789- x.", max_size=40))
def test_any_text_is_a_mask_or_a_sentence(text: str) -> None:
    try:
        assert decode(text, (4, 3)).shape == (4, 3)
    except ScanError as error:
        assert "runs" in str(error)


def test_the_owners_form_of_a_row() -> None:
    mask = decode("387620 23 996 33")
    # 387620 = 378 × 1024 + 548: column 378 from row 548; then 996 pixels after row 571 is row 543 of the next column.
    assert [np.argwhere(mask)[:, axis].min() for axis in (0, 1)] == [543, 378]
    assert np.flatnonzero(mask[:, 378]).tolist() == list(range(548, 571))
    assert np.flatnonzero(mask[:, 379]).tolist() == list(range(543, 576))
    assert mask.sum() == 56


def test_a_mask_lies_on_what_it_marks_in_the_image(tmp_path: Path) -> None:
    displayed = np.full((SIDE, SIDE), 40, np.uint8)
    displayed[100:300, 700:900] = 200  # upper right as displayed, at the patient's left
    displayed[500:510, 20:40] = 200
    masks = [np.zeros_like(displayed), np.zeros_like(displayed)]
    masks[0][100:300, 700:900] = 1
    masks[1][500:510, 20:40] = 1
    uid = write_image(tmp_path, 1, "p1", displayed)
    write_table(tmp_path, *[f"{uid}, {encode(mask)}" for mask in masks])
    (example,) = read(tmp_path).examples
    image = example.image.read()
    label = example.label.read(image)
    assert label.sum() == 200 * 200 + 10 * 20
    np.testing.assert_array_equal(image.voxels == 200, label == 1)
    assert (example.name, example.subject, example.split) == (uid, "p1", None)


def test_images_without_pneumothorax(tmp_path: Path) -> None:
    empty, full = write_image(tmp_path, 1, "p1"), write_image(tmp_path, 2)
    write_table(tmp_path, f"{empty}, -1", f"{full}, 5 3", header="ImageId,EncodedPixels")
    target = read(tmp_path)
    image = Volume(np.zeros((SIDE, SIDE), np.uint8), np.eye(4), ndim=2)
    assert [example.label.read(image).sum() for example in target.examples] == [0, 3]
    assert [example.subject for example in target.examples] == ["p1", full]
    assert [example.name for example in read(tmp_path, keep_empty=False).examples] == [full]
    assert (target.task, target.ndim, target.classes) == ("segmentation", 2, ("pneumothorax",))


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    uids = [write_image(tmp_path, number) for number in range(7)]
    write_image(tmp_path, 7, ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], Modality="CT")
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    write_table(
        tmp_path, f"{uids[0]}, 5 3", f"{uids[1]}, 5", f"{uids[2]}, 1048570 7", f"{uids[3]}, 5 3", f"{uids[3]}, -1",
        f"{uids[4]}, 5 x", f"{uids[5]},", "../escape, -1", ", -1", f"{UID.format(7)}, -1", "broken, -1",
    )  # fmt: skip
    target = read(tmp_path)
    assert [example.name for example in target.examples] == [uids[0]]
    where = f"dicom-images-train/{UID.format(7)}.1/{UID.format(7)}.2/{UID.format(7)}.dcm"
    assert {problem.name: problem.reason for problem in target.problems} == {
        uids[1]: "train-rle.csv: the runs are not pairs of a start and a length",
        uids[2]: "train-rle.csv: the runs end beyond the 1024×1024 pixels of an image",
        uids[3]: "train-rle.csv: one row says that there is none and another where it is",
        uids[4]: "train-rle.csv: the runs are not whole numbers",
        uids[5]: "train-rle.csv: the runs are not pairs of a start and a length",
        where.replace(UID.format(7), uids[6]): "train-rle.csv has no row of it",
        where: "a slice with a place in the patient, where a radiograph is expected",
        "broken.dcm": "not a DICOM file",
        "../escape": "train-rle.csv names it, and there is no such .dcm",
        "train-rle.csv:10": "it names no image",
    }
    with pytest.raises(ScanError, match="512×512 pixels"):
        RunLengths(("5 3",)).read(Volume(np.zeros((512, 512)), np.eye(4), ndim=2))


def test_a_wrong_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"train-rle\.csv does not exist"):
        read(tmp_path)
    write_table(tmp_path, header="ImageId,Pixels")
    with pytest.raises(ScanError, match=r"train-rle\.csv has no column 'EncodedPixels': it has ImageId, Pixels"):
        read(tmp_path)
    write_table(tmp_path)
    with pytest.raises(ScanError, match="holds no example: give the folder"):
        read(tmp_path)
