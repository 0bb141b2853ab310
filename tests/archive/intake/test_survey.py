"""The survey: which files of a folder are scans, and what is said of the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.intake.survey import SetAside, survey
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from tests.support.dicom_series import ct8, ct8_voxels, shown, write_all
from tests.support.nifti import grey, nifti_bytes, write_nifti


def only(path: Path) -> Volume:
    (volume,) = read_scan([path])
    return volume


SCAN = nifti_bytes(grey((8, 8, 8)))


def test_finds_every_scan_below_the_folder_in_order(tmp_path: Path) -> None:
    names = ["b.nii", "a/z.nii.gz", "a/b/c.NII.GZ", "B.NII"]
    paths = [write_nifti(tmp_path / name, grey((3, 3, 3))) for name in names]
    for other in ("notes.txt", "a/scan.nii.gz.part", "a/._z.nii.gz", "nii"):
        (tmp_path / other).write_bytes(b"x")
    found = survey(tmp_path)
    assert [scan.source for scan in found.scans] == sorted(names)
    assert {scan.num_bytes for scan in found.scans} == {path.stat().st_size for path in paths}
    assert all(only(tmp_path / scan.source).voxels.shape == (3, 3, 3) for scan in found.scans)
    assert (found.aside, found.num_others, found.num_found) == ((), 3, 4)  # what is hidden is not even counted


def test_hidden_folders_are_left_out_and_links_to_them_followed(tmp_path: Path) -> None:
    """As DataLad stores data sets."""
    write_nifti(tmp_path / ".git/annex/objects/MD5E.nii.gz", grey((3, 3, 3)))
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01/T1w.nii.gz").symlink_to("../.git/annex/objects/MD5E.nii.gz")
    found = survey(tmp_path)
    assert [scan.source for scan in found.scans] == ["sub-01/T1w.nii.gz"] and not found.aside


def test_links_that_lead_out_or_nowhere_are_set_aside(tmp_path: Path) -> None:
    outside = write_nifti(tmp_path / "outside/secret.nii", grey((3, 3, 3)))
    inside = write_nifti(tmp_path / "scans/a.nii", grey((3, 3, 3)))
    (tmp_path / "scans/out.nii").symlink_to(outside)
    (tmp_path / "scans/folder").symlink_to(outside.parent)
    (tmp_path / "scans/nowhere.nii").symlink_to("gone.nii")
    (tmp_path / "scans/unfetched").symlink_to("../.git/annex/objects/MD5E")
    (tmp_path / "scans/unfetched.tsv").symlink_to("../.git/annex/objects/MD5E")  # no scan, fetched or not
    (tmp_path / "scans/round.nii").symlink_to("round.nii")
    (tmp_path / "scans/within.nii").symlink_to(inside)
    (tmp_path / "there").symlink_to("scans")
    for folder in (tmp_path / "scans", tmp_path / "there"):
        found = survey(folder)
        assert [scan.source for scan in found.scans] == ["a.nii", "within.nii"]
        assert found.aside == (
            SetAside("folder", "a linked folder, and those are not followed"),
            SetAside("nowhere.nii", "a link to a file that is not there (git annex get?)"),
            SetAside("out.nii", "a link that leads out of the scans folder"),
            SetAside("round.nii", "a link to a file that is not there (git annex get?)"),
            SetAside("unfetched", "a link to a file that is not there (git annex get?)"),
        )
        assert found.num_others == 1


def test_no_folder_and_no_scans_are_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file.nii").write_bytes(b"")
    (tmp_path / "empty/below").mkdir(parents=True)
    for folder in (tmp_path / "missing", tmp_path / "file.nii"):
        with pytest.raises(ScanError, match="does not exist or is not a folder"):
            survey(folder)
    with pytest.raises(ScanError, match="no scan found"):
        survey(tmp_path / "empty")


def test_a_name_that_no_table_can_hold_is_set_aside_and_the_others_are_found(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.nii")).write_bytes(SCAN)
    (tmp_path / "a.nii").write_bytes(SCAN)
    found = survey(tmp_path)
    assert [scan.source for scan in found.scans] == ["a.nii"]
    (aside,) = found.aside
    assert aside.source == "caf?.nii" and "not UTF-8" in aside.reason


def test_what_looks_like_a_scan_and_is_none_is_said(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.hdr", "c.nhdr", "d.mhd", "e.csv", "f"):
        (tmp_path / name).write_text("no scan")
    found = survey(tmp_path)
    assert not found.scans and found.num_others == 2
    assert [file.source for file in found.aside] == ["a.dcm", "b.hdr", "c.nhdr", "d.mhd"]
    words = ("not DICOM", "save each as a single .nii", "save it as a single .nrrd", "ElementDataFile is no field")
    assert all(word in file.reason for word, file in zip(words, found.aside, strict=True))


def test_a_name_that_is_not_shown_as_it_is_is_no_name(tmp_path: Path) -> None:
    for name in ("a\x1b[2J.nii", "b\nc.nii", "d\\e.nii"):
        (tmp_path / name).write_bytes(SCAN)
    found = survey(tmp_path)
    assert not found.scans and [file.source for file in found.aside] == ["a\\x1b[2J.nii", "b\\nc.nii", "d\\e.nii"]
    assert all("another character that is not shown" in file.reason for file in found.aside)


def test_what_belongs_to_a_scan_is_part_of_it(tmp_path: Path) -> None:
    """A change in a side-car or a data file is a change of the scan; a .json beside a NIfTI file is BIDS' own."""
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = b.raw\n"
    (tmp_path / "b.mhd").write_text(header)
    for name in ("a.npy", "a.json", "b.raw", "c.nii", "c.json", "d.png", "d.json", "e.json"):
        (tmp_path / name).write_bytes(b"12345678")
    found = survey(tmp_path)
    parts = [[file.path for file in scan.files] for scan in found.scans]
    assert parts == [["a.npy", "a.json"], ["b.mhd", "b.raw"], ["c.nii"], ["d.png", "d.json"]]
    assert found.scans[0].num_bytes == 16


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may read everything cannot make one, so the listing is made to fail."""
    (tmp_path / "a.nii").write_bytes(SCAN)
    (tmp_path / "locked").mkdir()
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert survey(tmp_path).aside == (SetAside("locked", "a folder that cannot be read (Permission denied)"),)


# Series that an anonymiser tore up.


def torn(**tags: object) -> list[Dataset]:
    """Slices of one stack, each under a series UID of its own."""
    slices = ct8(**tags)
    for number, one in enumerate(slices):
        one.SeriesInstanceUID = f"1.2.3.{number}"
    return slices


def read_found(folder: Path) -> list[list[Volume]]:
    return [read_scan([folder / file.path for file in scan.files]) for scan in survey(folder).scans]


def test_slices_of_a_series_uid_each_are_one_scan(tmp_path: Path) -> None:
    write_all(tmp_path, torn())
    ((volume,),) = read_found(tmp_path)
    assert np.array_equal(shown(volume.voxels), ct8_voxels())
    words = "slices of 8 series UIDs joined, which are of one study and series number and at even distances"
    assert volume.corrections == (words,)


def test_they_are_one_scan_whatever_lies_beside_them(tmp_path: Path) -> None:
    """A frame of reference each, a folder each, and single slices of another number, orientation or place."""
    slices = torn()
    for number, one in enumerate(slices):
        one.FrameOfReferenceUID = f"1.2.4.{number}"
        write_all(tmp_path / str(number), [one])
    sagittal = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "SeriesInstanceUID": "1.2.3.20"}
    alone = [ct8(SeriesNumber=9, SeriesInstanceUID="1.2.3.21")[2], ct8(**sagittal)[1]]
    write_all(tmp_path / "alone", alone)
    assert sorted(volumes[0].ndim for volumes in read_found(tmp_path)) == [2, 2, 3]


def test_two_such_scans_of_one_study_and_number_are_told_by_their_folders(tmp_path: Path) -> None:
    write_all(tmp_path / "a", torn())
    second = torn(SOPInstanceUID="1.2.5", ImagePositionPatient=None)
    for number, one in enumerate(second):
        one.SeriesInstanceUID, one.ImagePositionPatient = f"1.2.3.9.{number}", [0, 0, 2.5 * number + 0.9]
        one.SOPInstanceUID = f"1.2.5.{number}"
    write_all(tmp_path / "b", second)
    found = survey(tmp_path)
    assert [[file.path[0] for file in scan.files] for scan in found.scans] == [["a"] * 8, ["b"] * 8]
    assert len({scan.name for scan in found.scans}) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda number: {"StudyInstanceUID": f"1.2.6.{number}"},
        lambda number: {"PatientID": f"someone {number}"},
        lambda number: {"SeriesNumber": number},
        lambda number: {"ImagePositionPatient": [0, 0, 2.5 * number**1.5]},
        lambda number: {"ImageOrientationPatient": [1, 0, 0, 0, f"{np.cos(number):.9f}", f"{np.sin(number):.9f}"]},
        lambda number: {"PixelSpacing": [0.7 + number / 50, 0.8]},
    ],
)  # fmt: skip
def test_single_slices_that_are_no_stack_stay_images(tmp_path: Path, change: Callable[[int], dict]) -> None:
    slices = torn()
    for number, one in enumerate(slices):
        for name, value in change(number).items():
            setattr(one, name, value)
    write_all(tmp_path, slices)
    assert [volume.ndim for (volume,) in read_found(tmp_path)] == [2] * 8
    assert {scan.series for scan in survey(tmp_path).scans} == {f"1.2.3.{number}" for number in range(8)}


def test_a_torn_scan_that_lacks_a_slice_says_so(tmp_path: Path) -> None:
    slices = torn()
    write_all(tmp_path, slices[:3] + slices[4:])
    with pytest.raises(ScanError, match="1 slice is missing: after slice 3 of 7"):
        read_found(tmp_path)
