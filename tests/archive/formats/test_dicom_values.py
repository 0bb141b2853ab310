"""What DICOM's stored values stand for: padding is no image, and tables and mappings are applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.sequence import Sequence

from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.intake.preparation import prepare
from raygenesis.archive.intake.take_in import describe
from raygenesis.archive.volume import Volume
from raygenesis.settings import ArchiveSettings
from tests.support.dicom_series import SECRETS, a_slice, grey, only, real, refusal, series, shown, write, write_all
from tests.support.scan_files import one

SHAPE = (8, 16, 20)
NOISE = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
OUTSIDE = np.random.default_rng(1).random(SHAPE) < 0.25
SIGNED = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15, "RescaleIntercept": 0}


def padded(values: np.ndarray | int, **tags: Any) -> list[Dataset]:
    return series(np.where(OUTSIDE, values, NOISE).astype(np.int16), **SIGNED | tags)


def read(folder: Path, slices: list[Dataset]) -> Volume:
    return only(read_scan(write_all(folder, slices)))


def limits(volume: Volume) -> tuple[float, float]:
    record = describe(volume, "id", 1, 64)
    return record["low"][0], record["high"][0]


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (-2000, {"PixelPaddingValue": -2000}),
        (np.random.default_rng(2).integers(-2010, -1999, SHAPE), {"PixelPaddingValue": -2010,
                                                                  "PixelPaddingRangeLimit": -2000}),
        (np.random.default_rng(2).integers(3000, 3010, SHAPE), {"PixelPaddingValue": 3010,
                                                                "PixelPaddingRangeLimit": 3000}),
    ],
)  # fmt: skip
def test_padding_is_left_out_of_the_limits(tmp_path: Path, values: Any, tags: dict[str, int]) -> None:
    volume = read(tmp_path, padded(values, **tags))
    inside = NOISE[~OUTSIDE]
    assert np.array_equal(shown(volume.voxels), np.where(OUTSIDE, inside.min(), NOISE))
    assert volume.valid is not None and np.array_equal(shown(volume.valid), ~OUTSIDE)
    assert limits(volume) == pytest.approx(np.percentile(inside, (0.5, 99.5)))
    share = f"{OUTSIDE.mean():.1%}"
    words = f"pixel padding, {share} of the voxels, set to the smallest value and left out of limits"
    assert volume.corrections == (words,)


def test_a_padding_value_that_nothing_has_changes_nothing(tmp_path: Path) -> None:
    volume = read(tmp_path, padded(5, PixelPaddingValue=-2000))
    assert volume.valid is None and not volume.corrections


def test_a_padding_value_written_as_the_other_type_is_the_same_bits(tmp_path: Path) -> None:
    slices = padded(-2000)
    for one_slice in slices:
        one_slice.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    volume = read(tmp_path, slices)
    assert volume.valid is not None and np.array_equal(shown(volume.valid), ~OUTSIDE)


def test_padding_is_mixed_into_nothing(tmp_path: Path) -> None:
    """Neither where slices are uneven, nor where a tilt is straightened, nor by another voxel size."""
    heights = [0, 2, 4.4, 6.4, 8.4, 10.4, 12.8, 14.8]
    for number, drift in enumerate((0, 0.1)):
        slices = padded(-2000, PixelPaddingValue=-2000)
        for one_slice, z in zip(slices, heights, strict=True):
            one_slice.ImagePositionPatient = [10, 20 + drift * z, z]
        volume = read(tmp_path / str(number), slices)
        assert volume.voxels.min() >= -1000 and volume.valid is not None
        smaller = prepare(volume, ArchiveSettings(spacing_mm=(3, 1, 1)))
        assert smaller.valid is not None and smaller.valid.shape == smaller.shape and smaller.voxels.min() >= -1000
        assert 0 < smaller.valid.mean() < 1


def test_what_a_straightened_tilt_leaves_empty_is_no_image(tmp_path: Path) -> None:
    slices = series(NOISE, **SIGNED)
    for number, one_slice in enumerate(slices):
        one_slice.ImagePositionPatient = [10, 20 + 0.5 * number, 2 * number]
    volume = read(tmp_path, slices)
    assert volume.shape == (8, 23, 20) and volume.valid is not None
    assert volume.valid.sum() == NOISE.size  # a step is a whole pixel
    assert limits(volume) == pytest.approx(np.percentile(NOISE, (0.5, 99.5)))


def test_a_picture_has_padding_too(tmp_path: Path) -> None:
    data = a_slice(np.where(OUTSIDE[0], 4095, grey()[0, :16, :1] // 2).astype(np.uint16), PixelPaddingValue=4095)
    volume = one(write(tmp_path / "a", data))
    assert volume.ndim == 2 and volume.valid is not None and np.array_equal(shown(volume.valid), ~OUTSIDE[0])
    assert volume.voxels.max() < 4095 and "pixel padding" in volume.corrections[0]


def test_nothing_but_padding_is_refused(tmp_path: Path) -> None:
    slices = series(np.full(SHAPE, 7, np.int16), **SIGNED, PixelPaddingValue=7)
    assert refusal(write_all(tmp_path, slices)) == "every pixel is padding: there is no image"


def with_table(values: list[int], first: int, bits: int, **tags: Any) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), first, bits], values
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return series((grey() % 300).astype(np.uint16), ModalityLUTSequence=Sequence([item]), **tags)


@pytest.mark.parametrize(("first", "bits"), [(0, 16), (20, 16), (0, 8), (0, 12)])
def test_a_modality_lut_is_applied_as_pydicom_does(tmp_path: Path, first: int, bits: int) -> None:
    values = [2**bits - 1 - n for n in range(256)]
    slices = with_table(values, first, bits)
    volume = read(tmp_path, slices)
    stored = (grey() % 300).astype(np.uint16)
    expected = 2**bits - 1 - np.clip(stored.astype(int) - first, 0, 255)
    assert np.array_equal(real(volume), expected[:, ::-1, ::-1]) and volume.corrections == ("modality LUT applied",)
    if bits in (8, 16):
        assert np.array_equal(apply_modality_lut(stored, slices[0]), expected)


def test_a_lut_of_an_inverted_image_is_inverted_in_its_own_bits(tmp_path: Path) -> None:
    slices = with_table(list(range(1000, 1256)), 0, 12, Modality="MR", PhotometricInterpretation="MONOCHROME1")
    expected = 4095 - (1000 + np.clip(grey() % 300, 0, 255).astype(int))
    assert np.array_equal(real(read(tmp_path, slices)), expected[:, ::-1, ::-1])


def test_a_lut_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    slices = with_table(list(range(256)), 0, 16)
    slices[0].ModalityLUTSequence[0].LUTDescriptor[0] = 300
    assert "modality LUT is cut short or damaged" in refusal(write_all(tmp_path, slices))


def mapping(unit: str) -> Dataset:
    item, code = Dataset(), Dataset()
    item.RealWorldValueSlope, item.RealWorldValueIntercept = 0.5, -100.0
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = unit, "UCUM", "Canary"
    item.MeasurementUnitsCodeSequence = Sequence([code])
    return item


@pytest.mark.parametrize(("unit", "said"), [("mm2/s", " (mm2/s)"), ("Canary^Jane", "")])
def test_a_real_world_mapping_is_applied_and_names_its_unit(tmp_path: Path, unit: str, said: str) -> None:
    slices = series(Modality="MR", RealWorldValueMappingSequence=Sequence([mapping(unit)]))
    volume = read(tmp_path, slices)
    assert np.array_equal(shown(real(volume)), grey() * 0.5 - 100)
    assert volume.corrections == (f"real-world mapping applied{said}",)
    assert not any(secret in str(volume.corrections) for secret in SECRETS)


def test_of_an_enhanced_file_the_mapping_lies_in_its_shared_groups(tmp_path: Path) -> None:
    data = a_slice(grey(), Modality="MR", NumberOfFrames=5)
    data.Rows, data.Columns = grey().shape[1:]
    shared, frames = Dataset(), []
    shared.RealWorldValueMappingSequence = Sequence([mapping("ms")])
    for number in range(5):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2 * number]
        frame.PlanePositionSequence = Sequence([place])
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    del data.ImagePositionPatient
    volume = one(write(tmp_path / "a", data))
    assert np.array_equal(shown(real(volume)), grey() * 0.5 - 100)
    assert volume.corrections == ("real-world mapping applied (ms)",)


def test_of_ct_the_rescaling_counts(tmp_path: Path) -> None:
    volume = read(tmp_path, series(RealWorldValueMappingSequence=Sequence([mapping("[hnsf'U]")])))
    assert (volume.slope, volume.intercept, volume.corrections) == (1, -1024, ())
