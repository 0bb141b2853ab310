"""Which slices are a stack: of one person, one acquisition, in one place each; what cannot be told is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag

from raygenesis.archive.formats.dicom import read_series, read_series_geometry
from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from tests.support.dicom_series import (
    CT8_SHAPE,
    STUDY,
    assert_geometry,
    assert_names_nobody,
    ct8,
    ct8_voxels,
    only,
    refusal,
    shown,
    write,
    write_all,
)

OTHER = np.random.default_rng(9).integers(-1000, 1000, CT8_SHAPE).astype(np.int16)


def another(shift: float, **tags: object) -> list[Dataset]:
    """Another person's CT under the same UIDs, but for its instances', moved along the table."""
    slices = ct8(OTHER, **tags)
    for n, one in enumerate(slices):
        one.SOPInstanceUID = f"{STUDY}.7.{n}"
        one.ImagePositionPatient = [0, 0, 2.5 * n + shift]
    return slices


def folders(root: Path, *series: Sequence[Dataset]) -> list[Path]:
    return [path for n, slices in enumerate(series) for path in write_all(root / f"{n}", slices)]


def assert_are_two(volumes: Sequence[Volume], shift: float) -> None:
    assert_names_nobody(volumes)
    assert len(volumes) == 2
    by_height = sorted(volumes, key=lambda volume: volume.affine[2, 3])
    for volume, voxels, height in zip(by_height, (ct8_voxels(), OTHER), (0, shift), strict=True):
        assert np.array_equal(shown(volume.voxels), voxels)
        assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.8)) and volume.affine[2, 3] == pytest.approx(height)


def test_a_plain_series_is_as_it_was_written(tmp_path: Path) -> None:
    paths = write_all(tmp_path, ct8())
    volume = only(read_series(paths))
    assert np.array_equal(shown(volume.voxels), ct8_voxels())
    assert volume.voxels.dtype == np.int16 and (volume.corrections, volume.notes) == ((), ())
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.8))
    assert_geometry(paths, [volume])


@pytest.mark.parametrize("shift", [1.25, 0.4, 7.5, 40.0])
@pytest.mark.parametrize(
    ("tag", "word"), [("StudyInstanceUID", "study UID"), ("FrameOfReferenceUID", "frame of reference UID")]
)
def test_two_people_under_one_series_uid_are_two_volumes(tmp_path: Path, tag: str, word: str, shift: float) -> None:
    paths = folders(tmp_path, ct8(), another(shift, **{tag: f"{STUDY}.8"}))
    volumes = read_series(paths)
    assert_are_two(volumes, shift)
    note = f"its series UID is used with 2 {word}s, each a volume of its own"
    assert all(volume.notes == (note,) for volume in volumes)
    assert_geometry(paths, volumes)


@pytest.mark.parametrize(
    "tags", [{"AcquisitionNumber": 2}, {"EchoTime": 5}, {"TemporalPositionIdentifier": 2}, {"ImageType": ["DERIVED"]}]
)
def test_acquisitions_between_each_other_are_volumes_of_their_own(tmp_path: Path, tags: dict[str, object]) -> None:
    paths = write_all(tmp_path, [*ct8(), *another(1.25, **tags)])
    volumes = read_series(paths)
    assert_are_two(volumes, 1.25)
    assert all("that lie at places of their own are volumes of their own" in volume.notes[0] for volume in volumes)
    assert_geometry(paths, volumes)


def test_acquisitions_that_overlap_in_part_are_volumes_of_their_own(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [*ct8(), *another(10.0, AcquisitionNumber=2)])
    assert_are_two(read_series(paths), 10.0)


def test_acquisitions_that_follow_one_another_are_one_volume(tmp_path: Path) -> None:
    """As step-and-shoot CT numbers its turns, and as a scan in two parts does."""
    for name, second in (("two", 2), ("many", None)):
        slices = [*ct8(), *another(20.0, AcquisitionNumber=2)]
        for n, one in enumerate(slices):
            one.AcquisitionNumber = 1 + n // 2 if second is None else one.AcquisitionNumber
        volume = only(read_series(write_all(tmp_path / name, slices)))
        assert np.array_equal(shown(volume.voxels), np.concatenate([ct8_voxels(), OTHER])) and not volume.notes


def test_slices_measured_in_turns_are_one_volume_where_the_header_says_so(tmp_path: Path) -> None:
    step = {"SpacingBetweenSlices": 1.25, "Modality": "MR"}
    second = another(1.25, AcquisitionNumber=2, **step)
    for n, one in enumerate(second):
        one.InstanceNumber = 9 + n
    volume = only(read_series(write_all(tmp_path, [*ct8(**step), *second])))
    assert volume.shape == (16, 16, 20) and volume.spacing_mm[0] == pytest.approx(1.25)
    assert np.array_equal(shown(volume.voxels)[::2], ct8_voxels())


def test_slices_triggered_in_turns_are_one_volume(tmp_path: Path) -> None:
    slices = ct8()
    for n, one in enumerate(slices):
        one.TriggerTime = 40 * (n % 2)
    volume = only(read_series(write_all(tmp_path, slices)))
    assert np.array_equal(shown(volume.voxels), ct8_voxels()) and not volume.notes


@pytest.mark.parametrize("shift", [1.25, 0.0])
@pytest.mark.parametrize("fourth_axis", ["refuse", "split", "channels"])
def test_one_series_uid_in_two_folders_is_refused(tmp_path: Path, shift: float, fourth_axis: str) -> None:
    """Whatever the instance numbers say, as they say nothing of time."""
    for name, first in (("same", 1), ("on", 9)):
        slices = another(shift)
        for n, one in enumerate(slices):
            one.InstanceNumber = first + n
        sentence = refusal(folders(tmp_path / name, ct8(), slices), fourth_axis)
        assert "one series UID is used in 2 folders for different slices" in sentence and "time" not in sentence


def test_a_scan_that_lies_in_several_folders_is_one(tmp_path: Path) -> None:
    """In parts, as media have it; a file a folder, as servers do; and whole in each of two folders."""
    slices = ct8()
    parts = folders(tmp_path / "parts", slices[:4], slices[4:])
    each = folders(tmp_path / "each", *([one] for one in slices))
    for paths in (parts, each, folders(tmp_path / "copy", slices, slices)):
        volume = only(read_series(paths))
        assert np.array_equal(shown(volume.voxels), ct8_voxels()) and not volume.notes


def test_two_scans_in_one_folder_are_told_by_their_instance_numbers(tmp_path: Path) -> None:
    sentence = refusal(write_all(tmp_path, [*ct8(), *another(1.25)]))
    assert "each of its 8 instance numbers comes 2 times" in sentence
    again = write_all(tmp_path / "again", [*ct8(), *another(20.0)])  # counted anew where a second part begins
    assert only(read_series(again)).shape == (16, 16, 20)


def test_slices_at_one_position_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [*ct8(), *another(0.0)])
    for fourth_axis in ("refuse", "split", "channels"):
        sentence = refusal(paths, fourth_axis)
        assert sentence == (
            "2 different slices lie at each of 8 positions, and nothing in the headers tells them apart"
        )


def test_time_points_told_by_instance_numbers_alone_are_noted(tmp_path: Path) -> None:
    slices = another(0.0)
    for n, one in enumerate(slices):
        one.InstanceNumber = 9 + n
    paths = write_all(tmp_path, [*ct8(), *slices])
    assert "2 different slices lie at each of 8 positions (only their instance numbers differ)" in refusal(paths)
    first, second = read_series(paths, "split")
    assert np.array_equal(shown(first.voxels), ct8_voxels()) and np.array_equal(shown(second.voxels), OTHER)
    assert first.notes == ("slices at one position told apart by their instance numbers",)


@pytest.mark.parametrize(
    ("tag", "values", "word"),
    [
        ("TemporalPositionIdentifier", (1, 2), "time points"), ("EchoTime", (5.1, 20), "echo times"),
        ("TriggerTime", (0, 40), "trigger delays"), ("InversionTime", (30, 200), "inversion times"),
        ("DiffusionBValue", (0.0, 1000.0), "b-values"), ("FrameReferenceTime", (10, 20), "frame times"),
        ("ImageType", (["DERIVED", "FAT"], ["DERIVED", "WATER"]), "image types"),
    ],
)  # fmt: skip
def test_what_tells_slices_at_one_position_apart_is_said(
    tmp_path: Path, tag: str, values: tuple[object, object], word: str
) -> None:
    paths = write_all(tmp_path, [*another(0.0, **{tag: values[1]}), *ct8(**{tag: values[0]})])
    assert f"2 different slices lie at each of 8 positions ({word}): " in refusal(paths)
    first, second = read_series(paths, "split")
    assert np.array_equal(shown(first.voxels), ct8_voxels()) and np.array_equal(shown(second.voxels), OTHER)
    assert not first.notes


def test_an_echo_that_lacks_a_slice_is_no_volume_of_its_own(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [*ct8(EchoTime=1), *another(0.0, EchoTime=2)[:-1]])
    assert "1 to 2 different slices lie at each of 8 positions (echo times)" in refusal(paths)
    assert "its echo times are incomplete: 1 to 2 slices lie at one position" in refusal(paths, "split")


def test_uids_that_differ_from_slice_to_slice_tell_nothing(tmp_path: Path) -> None:
    slices = ct8()
    for n, one in enumerate(slices):
        one.FrameOfReferenceUID, one.SeriesInstanceUID = f"{STUDY}.9.{n}", f"{STUDY}.10.{n}"
    volume = only(read_series(write_all(tmp_path, slices)))
    assert np.array_equal(shown(volume.voxels), ct8_voxels())
    assert volume.notes == ("each of its slices has another frame of reference UID, which was not heeded",)
    assert volume.corrections == (
        "slices of 8 series UIDs joined, which are of one study and series number and at even distances",
    )


def test_a_tag_that_is_damaged_tells_nothing(tmp_path: Path) -> None:
    slices = ct8()
    slices[3].TriggerTime = slices[4].TriggerTime = "1"
    paths = write_all(tmp_path, slices)
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"\x18\x00\x60\x10DS\x02\x001 ", b"\x18\x00\x60\x10DS\x02\x00xx"))
    assert np.array_equal(shown(only(read_series(paths)).voxels), ct8_voxels())


# Types that differ.


@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_signedness_that_differs_is_one_type_before_anything_is_filled(tmp_path: Path, tilt: float) -> None:
    random = np.random.default_rng(0)
    unsigned = random.integers(500, 509, CT8_SHAPE[1:]).astype(np.uint16)
    signed = random.integers(-1000, -991, CT8_SHAPE).astype(np.int16)
    signed[1, 0, 0], unsigned[0, 0] = -1000, 508
    slices = ct8(signed)
    slices[0].PixelRepresentation, slices[0].PixelData = 0, unsigned.tobytes()
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    for n, one in enumerate(slices):
        one.ImagePositionPatient = [0, 0, 2.5 * n + (0 if tilt else 0.12 * (n % 2))]
        one.ImageOrientationPatient = [1, 0, 0, 0, round(cos, 9), round(-sin, 9)]
    volume = only(read_series(write_all(tmp_path, slices)))
    assert (volume.voxels.min(), volume.voxels.max()) == (-1000, 508)
    assert volume.voxels.dtype == np.int16 and "slices of 2 types stored as int16" in volume.corrections
    if not tilt:
        assert np.array_equal(shown(volume.voxels)[0], unsigned)


def test_types_whose_values_fit_into_none_of_them_are_a_wider_one(tmp_path: Path) -> None:
    slices = ct8()
    high = np.full(CT8_SHAPE[1:], 60000, np.uint16)
    slices[0].PixelRepresentation, slices[0].PixelData = 0, high.tobytes()
    narrow = (np.arange(320) % 256).astype(np.uint8).reshape(CT8_SHAPE[1:])
    slices[1].PixelRepresentation, slices[1].PixelData = 0, narrow.tobytes()
    slices[1].BitsAllocated = slices[1].BitsStored = 8
    slices[1].HighBit = 7
    volume = only(read_series(write_all(tmp_path, slices)))
    expected = np.concatenate([[high], [narrow], ct8_voxels()[2:].astype(int)])
    assert volume.voxels.dtype == np.int32 and np.array_equal(shown(volume.voxels), expected)


# Steps that change.

THICK_ABOVE = [0, 2.5, 5, 7.5, 10, 12.5, 20, 27.5, 35, 42.5]


def at_heights(heights: Sequence[float]) -> list[Dataset]:
    voxels = np.random.default_rng(1).integers(-1000, 1000, (len(heights), 16, 20)).astype(np.int16)
    slices = ct8(voxels)
    for one, height in zip(slices, heights, strict=True):
        one.ImagePositionPatient = [0, 0, height]
    return slices


def test_a_change_of_step_is_refused_as_such_or_resampled_at_the_finest_step(tmp_path: Path) -> None:
    slices = at_heights(THICK_ABOVE)
    paths = write_all(tmp_path, slices)
    assert refusal(paths) == (
        "the step between slices changes from 2.50 to 7.50 mm after slice 6 of 10: archive.uneven=resample makes it "
        "even at 2.50 mm"
    )
    volume = only(read_scan(paths, uneven="resample"))
    stored = np.stack([one.pixel_array for one in slices])
    expected = np.empty((18, 16, 20))
    for row in range(16):
        for column in range(20):
            expected[:, row, column] = np.interp(np.arange(18) * 2.5, THICK_ABOVE, stored[:, row, column])
    assert np.abs(shown(volume.voxels) - expected).max() <= 0.51 and volume.voxels.dtype == np.int16
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.8))
    assert volume.corrections == (
        "the step between slices changes from 2.50 to 7.50 mm after slice 6 of 10: resampled linearly to 2.50 mm",
    )
    assert read_series_geometry(paths, "resample") == [(volume.shape, pytest.approx(volume.spacing_mm))]


def test_a_missing_slice_is_refused_even_so(tmp_path: Path) -> None:
    paths = write_all(tmp_path, at_heights([0, 2.5, 5, 10, 12.5, 15]))
    for uneven in (None, "resample"):
        with pytest.raises(ScanError, match=r"1 slice is missing: after slice 3 of 6 the next is 5\.00 mm away"):
            read_scan(paths, uneven=uneven)


def test_a_step_that_is_far_finer_than_another_is_refused(tmp_path: Path) -> None:
    paths = write_all(tmp_path, at_heights([0, 0.1, 0.2, 0.3, 10.3, 20.3, 30.3]))
    with pytest.raises(ScanError, match=r"changes from 0.10 to 10.00 mm after slice 4 of 7$"):
        read_scan(paths, uneven="resample")


def test_a_finer_step_may_be_more_than_a_scan_may_have(tmp_path: Path) -> None:
    paths = write_all(tmp_path, at_heights([0, 1, 2, 3, 12, 21, 30, 39]))
    with pytest.raises(ScanError, match=r"^25,600 bytes of voxels are more than archive"):
        read_scan(paths, max_bytes=25_599, uneven="resample")
    assert only(read_scan(paths, max_bytes=25_600, uneven="resample")).shape == (40, 16, 20)


# Files of many frames.


def many_frames(voxels: np.ndarray, **tags: object) -> Dataset:
    """One header for all frames, as cone-beam CT has it."""
    usual = {"NumberOfFrames": len(voxels), "SpacingBetweenSlices": 2.5, "PixelData": voxels.tobytes()}
    return ct8(voxels[:1], **{**usual, **tags})[0]


def test_frames_without_groups_lie_along_the_normal(tmp_path: Path) -> None:
    """The positions of plain slices are the right ones."""
    tilted = [1, 0, 0, 0, 0, -1]  # coronal: the normal points to the back
    plain = ct8(ImageOrientationPatient=tilted)
    for n, one in enumerate(plain):
        one.ImagePositionPatient = [3, 4 + 2.5 * n, 5]
    expected = only(read_series(write_all(tmp_path / "plain", plain)))
    data = many_frames(ct8_voxels(), ImageOrientationPatient=tilted, ImagePositionPatient=[3, 4, 5])
    path = write(tmp_path / "a", data)
    volume = only(read_series([path]))
    assert np.array_equal(volume.voxels, expected.voxels) and np.allclose(volume.affine, expected.affine)
    assert volume.notes == ("frames without places of their own laid along the slice normal, 2.5 mm apart",)
    assert_geometry([path], [volume])


def test_frames_of_nuclear_medicine_lie_where_their_slice_numbers_say(tmp_path: Path) -> None:
    order = [5, 1, 2, 3, 4, 6, 7, 8]
    data = many_frames(ct8_voxels()[np.array(order) - 1], Modality="NM", SpacingBetweenSlices=-2.5)
    view = Dataset()
    view.ImagePositionPatient, view.ImageOrientationPatient = [0, 0, 30], [1, 0, 0, 0, 1, 0]
    del data.ImagePositionPatient, data.ImageOrientationPatient
    data.DetectorInformationSequence = Items([view])
    data.FrameIncrementPointer, data.SliceVector = Tag("SliceVector"), order
    volume = only(read_series([write(tmp_path / "a", data)]))
    assert np.array_equal(shown(volume.voxels), ct8_voxels()[::-1])


@pytest.mark.parametrize(
    "tags",
    [
        {"SpacingBetweenSlices": None}, {"SpacingBetweenSlices": 0}, {"FrameIncrementPointer": Tag("FrameTime")},
        {"FrameIncrementPointer": [Tag("EnergyWindowVector"), Tag("DetectorVector")]},
    ],
)  # fmt: skip
def test_frames_of_a_film_are_refused(tmp_path: Path, tags: dict[str, object]) -> None:
    path = write(tmp_path / "film.dcm", many_frames(ct8_voxels(), **tags))
    assert refusal([path]) == "its 8 frames do not all say where they lie"


def test_files_of_frames_between_each_other_are_volumes_of_their_own(tmp_path: Path) -> None:
    first = write(tmp_path / "a", many_frames(ct8_voxels()))
    second = write(tmp_path / "b", many_frames(OTHER, ImagePositionPatient=[0, 0, 1.25], SOPInstanceUID=f"{STUDY}.7"))
    volumes = read_series([first, second])
    assert_are_two(volumes, 1.25)
    assert "files that lie at places of their own are volumes of their own" in volumes[0].notes
    after = write(tmp_path / "c", many_frames(OTHER, ImagePositionPatient=[0, 0, 20], SOPInstanceUID=f"{STUDY}.7"))
    assert only(read_series([first, after])).shape == (16, 16, 20)
