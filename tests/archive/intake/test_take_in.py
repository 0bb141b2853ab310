"""One scan: what becomes of it, whatever it, its reader or the disk does."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from raygenesis.archive.intake import take_in as module
from raygenesis.archive.intake.outcomes import IntakeOutcome
from raygenesis.archive.intake.take_in import (
    ALONE,
    MAX_CRASHES,
    attempt_note,
    scan_fingerprint,
    take_in,
)
from raygenesis.errors import PassingError, WorkspaceError
from raygenesis.settings import ArchiveSettings
from raygenesis.workspace import faults
from raygenesis.workspace.files import blake2b_of
from tests.support import dicom_series
from tests.support.nifti import grey, make_scans, write_nifti

NOISE = grey((1, 64, 48), np.int16)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return make_scans(tmp_path / "scans", 3)


def test_a_file_that_vanishes_is_a_failure_of_its_own_and_is_looked_for_again(tmp_path: Path) -> None:
    outcome = take_in([tmp_path / "gone.nii"], tmp_path / "archive/volumes", ArchiveSettings())
    assert outcome == IntakeOutcome(reason="cannot be read (No such file or directory)", is_lasting=False)


def test_a_place_that_cannot_be_written_is_no_fault_of_the_scan(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/volumes").symlink_to(tmp_path / "file")
    path = scans / "sub-00/sub-00_T1w.nii.gz"
    for volumes in (tmp_path / "file/archive/volumes", tmp_path / "archive/volumes"):
        with pytest.raises(WorkspaceError, match=r"cannot be written: Not a directory$"):
            take_in([path], volumes, ArchiveSettings())


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha", "a.npz", "a.dcm"])
def test_a_scan_that_claims_more_than_there_is_room_for_is_put_off_before_it_is_decoded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is its header's, whatever the size of the file."""
    path, volumes, is_dicom = write_noise(tmp_path / name), tmp_path / "archive/volumes", name == "a.dcm"
    settings = ArchiveSettings()
    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare", None)  # nothing is decoded, so nothing prepared
        outcome = take_in([path], volumes, settings, room=2 * NOISE.size - 1)
        # Of DICOM it is the files' own bytes, where those are more.
        assert outcome == IntakeOutcome((), "put off", False, max(2 * NOISE.size, path.stat().st_size * is_dicom))
        least = ArchiveSettings(max_scan_gib=NOISE.size / 2**30)
        forbidden = take_in([path], volumes, least, room=10)
        assert "more than archive.max_scan_gib=" in forbidden.reason and forbidden.is_lasting
    assert len(take_in([path], volumes, settings, room=outcome.claimed_bytes).records) == 1


def write_noise(path: Path) -> Path:
    """NOISE in any format, by the name's ending."""
    if path.suffix == ".npz":
        np.savez(path, NOISE)
        path.with_suffix(".json").write_text('{"spacing_mm": [1, 1, 1]}')
    elif path.suffix == ".dcm":
        one = dicom_series.a_slice(NOISE[0].view(np.uint16), Modality="DX", ImagePositionPatient=None)
        dicom_series.write(path, one)
    elif path.suffix == ".gz":
        write_nifti(path, NOISE.T)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(NOISE), path)
    return path


def test_a_scan_that_crashed_its_reader_is_given_up_in_the_end(scans: Path, tmp_path: Path) -> None:
    """A crash takes the process along and leaves only a note behind."""
    path, volumes = scans / "sub-00/sub-00_T1w.nii.gz", tmp_path / "archive/volumes"
    script = f"""
import os, pathlib
from raygenesis.archive.intake import take_in as intake
from raygenesis.settings import ArchiveSettings
intake.read_scan = lambda *_: os._exit(7)
for _ in range({MAX_CRASHES}):
    child = os.fork()
    if not child:
        intake.take_in([pathlib.Path({str(path)!r})], pathlib.Path({str(volumes)!r}), ArchiveSettings())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
    outcome = take_in([path], volumes, ArchiveSettings())
    assert outcome.reason == "decoding it crashed, or was ended, 2 times, the last time with nothing beside it"
    assert not outcome.is_lasting
    shutil.rmtree(tmp_path / "archive/attempts")
    assert take_in([path], volumes, ArchiveSettings()).records and not any((tmp_path / "archive/attempts").iterdir())


def test_attempts_that_ended_with_their_node_say_nothing_of_the_scan(scans: Path, tmp_path: Path) -> None:
    path, volumes = scans / "sub-00/sub-00_T1w.nii.gz", tmp_path / "archive/volumes"
    note = attempt_note(volumes, [path])
    note.parent.mkdir(parents=True)
    note.write_text("4711 0 gone\n" * MAX_CRASHES)
    asked = ([path], volumes, ArchiveSettings(), "here")
    assert "crashed" in take_in(*asked, lambda node: node == "another").reason
    assert take_in(*asked, lambda node: node == "gone").records


def test_a_scan_at_which_a_worker_ended_is_tried_again_with_nothing_beside_it(scans: Path, tmp_path: Path) -> None:
    """It may have been killed for the memory that others took."""
    path, volumes = scans / "sub-00/sub-00_T1w.nii.gz", tmp_path / "archive/volumes"
    note = attempt_note(volumes, [path])
    note.parent.mkdir(parents=True)
    note.write_text("4711 0 here\n")
    outcome = take_in([path], volumes, ArchiveSettings(), "here", room=2**30)
    assert outcome.reason == "put off" and outcome.claimed_bytes == ALONE and not outcome.is_lasting
    assert note.read_text() == "4711 0 here\n" and not volumes.exists()
    assert take_in([path], volumes, ArchiveSettings(), "here", room=ALONE).records


def test_a_kill_for_memory_is_said_to_be_one(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, volumes = scans / "sub-00/sub-00_T1w.nii.gz", tmp_path / "archive/volumes"
    note = attempt_note(volumes, [path])
    note.parent.mkdir(parents=True)
    note.write_text("4711 3 here\n4712 4 here\n")
    monkeypatch.setattr("raygenesis.archive.intake.take_in.memory_kills", lambda: 5)
    for node, words in (
        ("here", "memory ran out 2 times while it was decoded"),
        ("there", "decoding it crashed, or was ended, 2 times"),
    ):
        assert take_in([path], volumes, ArchiveSettings(), node).reason.startswith(words)


def test_a_refused_scan_leaves_no_note_of_a_crash(tmp_path: Path) -> None:
    (tmp_path / "text.nii").write_text("not a scan")
    for _ in range(MAX_CRASHES + 1):
        outcome = take_in([tmp_path / "text.nii"], tmp_path / "archive/volumes", ArchiveSettings())
        assert "not readable as NIfTI" in outcome.reason and outcome.is_lasting


def test_a_scan_in_which_preparing_leaves_one_value_is_a_failure(tmp_path: Path) -> None:
    """Voxels so sparse that all of them are rounded away."""
    sparse = np.zeros((32, 32, 32), np.uint8)
    sparse[::8, ::8, ::8] = 1
    path, volumes = write_nifti(tmp_path / "sparse.nii", sparse), tmp_path / "archive/volumes"
    outcome = take_in([path], volumes, ArchiveSettings(spacing_mm=(4.0, 4.0, 4.0)))
    assert outcome.reason.startswith("every channel is of a single value, once it is cropped or resampled")
    assert outcome.is_lasting and not volumes.exists()
    assert take_in([path], volumes, ArchiveSettings()).records


def test_a_scan_whose_channels_are_flat_each_is_a_failure(tmp_path: Path) -> None:
    colours = np.zeros((6, 6, 6, 3), np.uint8) + np.array([1, 2, 3], np.uint8)
    path = write_nifti(tmp_path / "a.nii", colours.view([(name, "u1") for name in "RGB"])[..., 0])
    outcome = take_in([path], tmp_path / "archive/volumes", ArchiveSettings())
    assert outcome.reason == "every channel is of a single value: there is no image"


def test_the_identity_of_a_scan_is_its_bytes_in_any_order(scans: Path) -> None:
    paths = sorted(scans.rglob("*.nii.gz"))
    assert scan_fingerprint(paths[:1]) == blake2b_of(paths[0])
    assert scan_fingerprint(paths) == scan_fingerprint(paths[::-1]) != scan_fingerprint(paths[:2])


def test_the_unexpected_in_a_decoder_is_a_failure_too(tmp_path: Path, monkeypatch) -> None:
    def surprise(*_: object) -> None:
        raise ZeroDivisionError("patient Jane")

    monkeypatch.setattr(module, "read_scan", surprise)
    path = write_nifti(tmp_path / "a.nii", grey((9, 12, 10)))
    outcome = take_in([path], tmp_path / "archive" / "volumes", ArchiveSettings())
    assert outcome.reason == "cannot be decoded (unexpected ZeroDivisionError)"
    assert not list((tmp_path / "archive" / "attempts").iterdir())


def test_slices_whose_step_changes_are_refused_or_resampled_as_the_settings_say(tmp_path: Path) -> None:
    slices = dicom_series.ct8()
    for one, height in zip(slices, (0, 2, 4, 6, 8, 12, 16, 20), strict=True):
        one.ImagePositionPatient = [0, 0, height]
    paths = dicom_series.write_all(tmp_path / "scans", slices)
    refused = take_in(paths, tmp_path / "refused/volumes", ArchiveSettings())
    assert refused.reason.startswith("the step between slices changes from 2.00 to 4.00 mm after slice 5 of 8")
    taken = take_in(paths, tmp_path / "archive/volumes", ArchiveSettings(uneven="resample"))
    (record,) = taken.records
    assert record["shape"] == [11, 16, 20] and record["spacing_mm"] == pytest.approx([2, 0.7, 0.8])
    assert record["corrections"][0].endswith("after slice 5 of 8: resampled linearly to 2.00 mm")


def test_a_damaged_sector_is_a_scan_s_failure_and_a_lost_server_ends_the_job(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, volumes = scans / "sub-00/sub-00_T1w.nii.gz", tmp_path / "archive/volumes"
    monkeypatch.setattr(faults, "wait", lambda number: None)

    def failing(number: int) -> None:
        def read(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("raygenesis.archive.intake.take_in.read_scan", read)

    failing(errno.EIO)
    outcome = take_in([path], volumes, ArchiveSettings())
    assert outcome.reason == "cannot be read (Input/output error)" and not outcome.is_lasting
    failing(errno.ESTALE)
    with pytest.raises(PassingError, match="the files of a scan cannot be reached in 7 attempts"):
        take_in([path], volumes, ArchiveSettings())
    monkeypatch.undo()
    monkeypatch.setattr(faults, "wait", lambda number: None)

    def full(*_: object) -> None:  # the workspace's disk is damaged, and no scan
        raise PassingError("/workspace/a cannot be reached (Input/output error)") from OSError(errno.EIO, "")

    monkeypatch.setattr("raygenesis.archive.intake.take_in.write_volume", full)
    with pytest.raises(PassingError, match="/workspace/a"):
        take_in([path], volumes, ArchiveSettings())
