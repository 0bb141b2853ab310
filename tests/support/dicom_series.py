"""DICOM series for tests: five small slices of a patient whose every name, number and date is a canary."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from raygenesis.archive.formats.dicom import read_series, read_series_geometry
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError

SLICES, SIDE = 5, 16
CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY = "1.2.826.0.1.3680043.8.498.70007"
# No sentence, tag or correction may hold one of these.
SECRETS = ("70007", "Canary", "CANARY", "19631122", "1963", "canary")


def grey() -> np.ndarray:
    """Noise [z, y, x] of 12 bits."""
    return np.random.default_rng(0).integers(0, 4096, (SLICES, SIDE, SIDE)).astype(np.uint16)


def a_slice(pixels: np.ndarray, number: int = 0, **tags: object) -> Dataset:
    """An axial CT slice of 12 bits, 2 mm above the last, whose patient is a canary."""
    data = Dataset()
    data.PatientName, data.PatientID, data.PatientBirthDate = "Canary^Jane", "CANARY-1", "19631122"
    data.StudyDate, data.AccessionNumber, data.InstitutionName = "19631122", "CANARY-2", "Canary Hospital"
    data.SOPClassUID, data.SOPInstanceUID = CT, f"{STUDY}.2.{number + 1}"
    data.SeriesInstanceUID, data.StudyInstanceUID = f"{STUDY}.1", STUDY
    data.Modality, data.ImageType, data.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], 100 - number
    data.Manufacturer, data.KVP = "Ray (Works) 2.0", "120"
    data.ImagePositionPatient, data.ImageOrientationPatient = [10, 20, 2 * number], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [0.5, 0.75], 2
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = min(12, data.BitsAllocated)
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def series(voxels: np.ndarray | None = None, **tags: object) -> list[Dataset]:
    return [a_slice(pixels, number, **tags) for number, pixels in enumerate(grey() if voxels is None else voxels)]


CT8_SHAPE = (8, 16, 20)


def ct8_voxels() -> np.ndarray:
    """Noise [z, y, x] from −1000 to 999."""
    return np.random.default_rng(8).integers(-1000, 1000, CT8_SHAPE).astype(np.int16)


def ct8(voxels: np.ndarray | None = None, **tags: object) -> list[Dataset]:
    """A plain CT series of eight slices, 2.5 mm apart, of signed 16 bits, under one UID of each kind."""
    usual = {
        "PixelSpacing": [0.7, 0.8], "SliceThickness": 2.5, "PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15,
        "RescaleSlope": 1, "RescaleIntercept": 0, "FrameOfReferenceUID": f"{STUDY}.5", "SeriesNumber": 3,
        "AcquisitionNumber": 1,
    }  # fmt: skip
    return [
        a_slice(pixels, n, **{**usual, "ImagePositionPatient": [0, 0, 2.5 * n], "InstanceNumber": n + 1, **tags})
        for n, pixels in enumerate(ct8_voxels() if voxels is None else voxels)
    ]


def run_length_encoded() -> list[Dataset]:
    slices = series()
    for one in slices:
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.compress(RLELossless, generate_instance_uid=False)
    return slices


def write(path: Path, data: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = CT, data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)
    return path


def write_all(folder: Path, slices: Sequence[Dataset], syntax: str = ExplicitVRLittleEndian) -> list[Path]:
    """The files in an order, and under names, that say nothing about where the slices lie."""
    folder.mkdir(exist_ok=True, parents=True)
    paths = [write(folder / f"{7 * n % 11}-{n}.dcm", one, syntax) for n, one in enumerate(slices)]
    random.Random(1).shuffle(paths)
    return paths


def only(volumes: list[Volume]) -> Volume:
    assert len(volumes) == 1
    assert_names_nobody(volumes)
    return volumes[0]


def assert_names_nobody(volumes: Sequence[Volume]) -> None:
    said = str([(*volume.tags.items(), *volume.corrections, *volume.notes) for volume in volumes])
    assert not any(secret in said for secret in SECRETS)


def real(volume: Volume) -> np.ndarray:
    return volume.voxels * np.float64(volume.slope) + volume.intercept


def shown(voxels: np.ndarray) -> np.ndarray:
    """Axial slices (columns rise towards L, rows towards P) in canonical axes."""
    return voxels[..., ::-1, ::-1]


def refusal(paths: Sequence[Path], fourth_axis: str = "refuse") -> str:
    with pytest.raises(ScanError) as error:
        read_series(paths, fourth_axis)
    sentence = str(error.value)
    assert not any(secret in sentence for secret in SECRETS)
    assert "\n" not in sentence and len(sentence) < 250 and not any(path.name in sentence for path in paths)
    return sentence


def assert_geometry(paths: Sequence[Path], volumes: Sequence[Volume]) -> None:
    expected = [(volume.shape, pytest.approx(volume.spacing_mm)) for volume in volumes]
    assert read_series_geometry(paths) == expected
