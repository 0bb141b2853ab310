"""An archive that grows: only what is new or changed is read, and the end is the same as if made in one go."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue
from raygenesis.archive.ingest import ingest
from raygenesis.archive.inspection import info, verify
from raygenesis.archive.intake.known_files import read_known_files, write_known_files
from raygenesis.archive.intake.take_in import MAX_CRASHES, attempt_note
from raygenesis.errors import WorkspaceError
from raygenesis.settings import Settings, load_settings
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import read_table, write_table
from raygenesis.workspace.workspace import Workspace
from tests.support import dicom_series
from tests.support.nifti import grey, write_nifti

pytestmark = pytest.mark.usefixtures("ray_cluster")

OVERRIDES = ["archive.coarse_size=8", "archive.chunk=8", "archive.shard=16"]
SETTINGS = load_settings("cpu-small", OVERRIDES)


def add(scans: Path, *numbers: int) -> None:
    for number in numbers:
        write_nifti(scans / f"sub-{number:02d}_T1w.nii.gz", grey((9, 12, 10), seed=number))


def workspace_with_key(folder: Path) -> Workspace:
    """Workspaces of one key give subjects and files the same pseudonyms."""
    workspace = Workspace.open(folder)
    (folder / "private").mkdir(exist_ok=True)
    (folder / "private" / "key").write_text("5a" * 32)
    return workspace


def contents(workspace: Workspace) -> dict[str, bytes]:
    """Bytes of the archive; its manifest tells times, and how much was known."""
    files = (path for path in workspace.archive.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(workspace.archive)): path.read_bytes() for path in files}


def in_one_go(scans: Path, folder: Path, settings: Settings = SETTINGS) -> dict[str, bytes]:
    workspace = workspace_with_key(folder)
    ingest(scans, workspace, settings)
    return contents(workspace)


def test_what_is_known_is_not_even_opened(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, *range(5))
    (scans / "broken.nii").write_bytes(b"no scan")
    ingest(scans, workspace, SETTINGS)
    add(scans, 5, 6)
    known = [scans / f"sub-{number:02d}_T1w.nii.gz" for number in range(5)] + [scans / "broken.nii"]
    for path in known:  # the same size and time, and nothing that could be read
        stat = path.stat()
        path.write_bytes(b"\0" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    manifest = ingest(scans, workspace, SETTINGS)
    assert manifest.counts.known == 6 and manifest.counts.volumes == 7
    assert manifest.counts.failures == 1
    add(scans, *range(5))
    assert contents(workspace) == in_one_go(scans, tmp_path / "fresh")


def test_a_changed_file_replaces_its_volume(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1, 2)
    ingest(scans, workspace, SETTINGS)
    write_nifti(scans / "sub-01_T1w.nii.gz", grey((9, 12, 10), seed=77))
    manifest = ingest(scans, workspace, SETTINGS)
    assert manifest.counts.known == 2 and manifest.counts.volumes == 3
    assert len(list(workspace.volumes.iterdir())) == 3
    assert contents(workspace) == in_one_go(scans, tmp_path / "fresh")


def test_a_renamed_file_keeps_its_volume(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1)
    ingest(scans, workspace, SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in workspace.volumes.rglob("*")}
    (scans / "sub-01_T1w.nii.gz").rename(scans / "sub-09_T1w.nii.gz")
    assert ingest(scans, workspace, SETTINGS).counts.removed == 0
    assert {path: path.stat().st_mtime_ns for path in workspace.volumes.rglob("*")} == before
    assert contents(workspace) == in_one_go(scans, tmp_path / "fresh")


def test_removed_files_are_reported_and_pruned_only_when_asked(tmp_path: Path, capsys) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1, 2)
    ingest(scans, workspace, SETTINGS)
    (scans / "sub-01_T1w.nii.gz").unlink()
    manifest = ingest(scans, workspace, SETTINGS)
    assert (manifest.counts.removed, manifest.counts.volumes) == (1, 3)
    assert "1 volumes stay whose files are gone or no longer readable: --prune removes them" in capsys.readouterr().out
    manifest = ingest(scans, workspace, SETTINGS, prune=True)
    assert (manifest.counts.removed, manifest.counts.volumes) == (0, 2)
    assert contents(workspace) == in_one_go(scans, tmp_path / "fresh")
    capsys.readouterr()
    ingest(scans, workspace, SETTINGS, prune=True)
    assert "nothing to do" in capsys.readouterr().out


def test_what_a_killed_ingest_did_not_come_to_remove_the_next_one_removes(tmp_path: Path, monkeypatch) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1, 2)
    ingest(scans, workspace, SETTINGS)
    (scans / "sub-01_T1w.nii.gz").unlink()

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr("raygenesis.archive.intake.growth.remove_tree", killed)
        ingest(scans, workspace, SETTINGS, prune=True)
    assert len(list(workspace.volumes.iterdir())) == 3
    (workspace.volumes / "notes.txt").write_text("somebody's own")
    assert ingest(scans, workspace, SETTINGS).counts.volumes == 2
    (workspace.volumes / "notes.txt").unlink()
    assert contents(workspace) == in_one_go(scans, tmp_path / "fresh")


def test_a_volume_that_cannot_be_removed_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1)
    ingest(scans, workspace, SETTINGS)
    (scans / "sub-01_T1w.nii.gz").unlink()

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as locked, pytest.raises(WorkspaceError, match=r"zarr cannot be removed: Permission"):
        locked.setattr(shutil, "rmtree", refuse)
        ingest(scans, workspace, SETTINGS, prune=True)
    assert "volumes removed" not in capsys.readouterr().out and not (workspace.archive / "manifest.json").exists()
    ingest(scans, workspace, SETTINGS, prune=True)
    assert len(list(workspace.volumes.iterdir())) == 1


def test_a_volume_that_was_lost_is_made_again(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1, 2)
    ingest(scans, workspace, SETTINGS)
    whole = contents(workspace)
    shutil.rmtree(next(workspace.volumes.iterdir()))
    assert ingest(scans, workspace, SETTINGS).counts.known == 2
    assert contents(workspace) == whole


def test_copies_under_other_names_leave_no_second_volume(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0)
    shutil.copy(scans / "sub-00_T1w.nii.gz", scans / "copy.nii.gz")
    write_nifti(scans / "unpacked.nii", grey((9, 12, 10), seed=0))  # other bytes, the same voxels
    manifest = ingest(scans, workspace, SETTINGS)
    assert (manifest.counts.volumes, manifest.counts.failures) == (1, 2)
    assert len(list(workspace.volumes.iterdir())) == 1
    (row,) = read_catalogue(workspace.catalog)
    paths = {known["source"]: known["path"] for known in read_known_files(workspace.private).values()}
    assert paths[row["source"]] == "copy.nii.gz"
    reasons = read_table(workspace.archive / "failures.parquet", schema=FAILURES)["reason"].to_pylist()
    assert reasons == [f"same voxels as {row['source']}"] * 2


def test_time_points_become_volumes_of_one_subject(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    write_nifti(scans / "sub-7_bold.nii.gz", grey((6, 7, 8, 3)))
    settings = load_settings("cpu-small", [*OVERRIDES, "archive.fourth_axis=split"])
    assert ingest(scans, workspace, settings).counts.volumes == 3
    rows = read_catalogue(workspace.catalog)
    assert len({row["subject_id"] for row in rows}) == len({row["source"] for row in rows}) == 1
    before = contents(workspace)
    add(scans, 1)
    manifest = ingest(scans, workspace, settings)
    assert (manifest.counts.known, manifest.counts.volumes) == (1, 4)
    assert before.items() <= contents(workspace).items() | {
        (name, content) for name, content in before.items() if name.endswith(".parquet")
    }


class Crash:
    """Kills the process that decodes one scan, as a fault in a decoder would, whenever it begins."""

    def __init__(self, attempt: Path, times: int) -> None:
        self._attempt, self._times, self.killed = attempt, times, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Crash:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        dead: set[str] = set()
        while not self._stop.is_set() and self.killed < self._times:
            lines = self._attempt.read_text().splitlines() if self._attempt.exists() else []
            if lines and lines[-1] not in dead:
                dead.add(lines[-1])
                os.kill(int(lines[-1].split()[0]), signal.SIGKILL)
                self.killed += 1
            time.sleep(0.001)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Scans of which one takes half a second to decode."""
    scans = tmp_path / "scans"
    add(scans, *range(6))
    noise = np.random.default_rng(0).integers(0, 3000, (160, 160, 160)).astype(np.int16)
    write_nifti(scans / "sub-slow_T1w.nii.gz", noise)
    return scans


def test_a_worker_killed_once_costs_nothing_but_time(slow: Path, tmp_path: Path) -> None:
    workspace = workspace_with_key(tmp_path / "ws")
    bad = attempt_note(workspace.volumes, [(slow / "sub-slow_T1w.nii.gz").resolve()])
    with Crash(bad, times=1) as crash:
        manifest = ingest(slow, workspace, SETTINGS)
    assert crash.killed == 1 and manifest.counts.failures == 0
    assert contents(workspace) == in_one_go(slow, tmp_path / "fresh")


def test_a_scan_that_crashes_its_decoder_is_a_failure_and_not_the_end(slow: Path, tmp_path: Path) -> None:
    workspace = workspace_with_key(tmp_path / "ws")
    bad = attempt_note(workspace.volumes, [(slow / "sub-slow_T1w.nii.gz").resolve()])
    with Crash(bad, times=100) as crash:
        manifest = ingest(slow, workspace, SETTINGS)
    assert crash.killed == MAX_CRASHES
    assert (manifest.counts.volumes, manifest.counts.failures) == (6, 1)
    (reason,) = read_table(workspace.archive / "failures.parquet")["reason"].to_pylist()
    assert reason == f"decoding it crashed, or was ended, {MAX_CRASHES} times, the last time with nothing beside it"
    # It is not a lasting failure: the next ingest tries again.
    add(slow, 7)
    assert ingest(slow, workspace, SETTINGS).counts.failures == 0


def kill_driver_when(scans: Path, workspace: Workspace, reached: Callable[[], bool]) -> None:
    command = [
        sys.executable, "-m", "raygenesis", "ingest",
        "--scans", str(scans), "--workspace", str(workspace.root), *OVERRIDES,
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_with_all_of_ray_it_goes_on_where_it_was(slow: Path, tmp_path: Path) -> None:
    workspace = workspace_with_key(tmp_path / "ws")
    kill_driver_when(slow, workspace, lambda: len(list(workspace.volumes.glob("*.ome.zarr/zarr.json"))) >= 2)
    assert not (workspace.archive / "manifest.json").exists()
    ingest(slow, workspace, SETTINGS)
    assert contents(workspace) == in_one_go(slow, tmp_path / "fresh")


def test_half_a_copy_does_not_cost_the_whole_one(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1, 2)
    ingest(scans, workspace, SETTINGS)
    path = scans / "sub-01_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:300])
    counts = ingest(scans, workspace, SETTINGS).counts
    assert (counts.volumes, counts.failures, counts.removed) == (3, 1, 1)
    assert len(list(workspace.volumes.iterdir())) == 3
    add(scans, 1)
    assert ingest(scans, workspace, SETTINGS).counts.removed == 0
    assert contents(workspace) == in_one_go(scans, tmp_path / "fresh")


def test_what_failed_for_now_is_tried_again_although_the_folder_is_the_same(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1)
    ingest(scans, workspace, SETTINGS)
    rows = list(read_known_files(workspace.private).values())
    rows[0] |= {"volume_ids": [], "reason": "cannot be read", "is_lasting": False}
    write_known_files(workspace.private, rows)
    assert ingest(scans, workspace, SETTINGS).counts.failures == 0
    assert contents(workspace) == in_one_go(scans, tmp_path / "fresh")


def test_another_folder_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1)
    ingest(scans, workspace, SETTINGS)
    whole = contents(workspace)
    write_nifti(tmp_path / "other" / "sub-00_T1w.nii.gz", grey((9, 12, 10), seed=50))
    with pytest.raises(WorkspaceError, match=r"no scan in .*other is one of that folder"):
        ingest(tmp_path / "other", workspace, SETTINGS)
    assert contents(workspace) == whole and (workspace.archive / "manifest.json").is_file()
    scans.rename(tmp_path / "moved")
    add(tmp_path / "moved", 2)
    assert ingest(tmp_path / "moved", workspace, SETTINGS).counts.known == 2


@pytest.mark.parametrize("keep_ids", [False, True])
def test_a_series_that_grows_by_its_first_file_is_still_one_volume(tmp_path: Path, keep_ids: bool) -> None:
    settings = load_settings("cpu-small", [*OVERRIDES, f"archive.keep_ids={keep_ids}"])
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    voxels = np.random.default_rng(0).integers(0, 4096, (6, 16, 16)).astype(np.uint16)
    first = min(dicom_series.write_all(scans, dicom_series.series(voxels)))
    aside = first.read_bytes()
    first.unlink()
    ingest(scans, workspace, settings)
    (scans / "0000.dcm").write_bytes(aside)
    counts = ingest(scans, workspace, settings).counts
    assert (counts.volumes, counts.removed) == (1, 0)
    assert len(list(workspace.volumes.iterdir())) == 1 and list(read_known_files(workspace.private)) == ["0000.dcm"]


def test_duplicates_are_known_too_and_their_paths_stay_listed(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", workspace_with_key(tmp_path / "ws")
    add(scans, 0, 1)
    write_nifti(scans / "unpacked.nii", grey((9, 12, 10), seed=0))
    ingest(scans, workspace, SETTINGS)
    add(scans, 2)
    (scans / "sub-01_T1w.nii.gz").unlink()
    counts = ingest(scans, workspace, SETTINGS).counts
    assert (counts.known, counts.volumes, counts.failures, counts.removed) == (2, 3, 1, 1)
    assert "sub-01_T1w.nii.gz" in read_known_files(workspace.private)


def test_an_archive_of_an_earlier_version_opens_and_grows(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", Workspace.open(tmp_path / "ws")
    add(scans, 0, 1)
    ingest(scans, workspace, SETTINGS)
    # As it was before volumes had notes: neither the catalogue nor the volumes' attributes have them.
    earlier = CATALOGUE.remove(CATALOGUE.get_field_index("notes"))
    write_table(workspace.catalog, pa.Table.from_pylist(read_catalogue(workspace.catalog), earlier))
    for path in workspace.volumes.glob("*/zarr.json"):
        group = json.loads(path.read_text())
        assert group["attributes"]["raygenesis"].pop("notes")
        path.write_text(json.dumps(group))
    assert not any(line.startswith("assumed") for line in info(workspace)) and verify(workspace) == 2
    add(scans, 2)
    assert ingest(scans, workspace, SETTINGS).counts.known == 2
    said = sorted(len(row["notes"]) for row in read_catalogue(workspace.catalog))
    assert said == [0, 0, 1] and verify(workspace) == 3
    # Of volumes that are there without their catalogue, too.
    shutil.rmtree(workspace.root / "private")
    workspace.catalog.unlink()
    (workspace.archive / "manifest.json").unlink()
    ingest(scans, workspace, SETTINGS)
    assert sorted(len(row["notes"]) for row in read_catalogue(workspace.catalog)) == said
