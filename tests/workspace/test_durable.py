"""Publication cut off at every call, and what was not synced lost: what is found then is whole, or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raygenesis.archive.intake.take_in import take_in
from raygenesis.archive.store import read_record
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.schema import PATTERN, TRAINING
from raygenesis.patterns.writer import part_path, read_whole_part, write_part
from raygenesis.settings import ArchiveSettings
from raygenesis.training.checkpoints import newest_checkpoint, save_checkpoint
from raygenesis.workspace.artifacts import SWEEPS
from raygenesis.workspace.files import make_folder, publish, sync_tree, write_json, write_table
from raygenesis.workspace.manifest import SweepCost, SweepCounts, SweepManifest
from raygenesis.workspace.stage import Stage
from tests.support.cases import write_nifti
from tests.support.stores import StorePlan


class Cut(BaseException):
    """The power is gone."""


class Disk:
    """Counts the calls that publish below a folder, is cut off at the n-th, and loses what was not synced by then.

    A file keeps the bytes, and a folder the names, that they had when they were last synced.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.left = root, 10**9
        self.calls: list[str] = []
        self._bytes: dict[int, bytes] = {}  # of files by inode, which renaming keeps
        self._names: dict[int, dict[str, int]] = {}  # of folders by inode: the inode of each name
        for name in ("fsync", "replace", "link"):
            patch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[1])
            if not Path(path).is_relative_to(self.root):
                return call(*arguments, **options)
            self.calls.append(f"{name} {Path(path).name}")
            self.left -= 1
            if self.left < 0:
                raise Cut
            done = call(*arguments, **options)
            if name == "fsync":
                self._keep(Path(path))
            return done

        return counted

    def _keep(self, path: Path) -> None:
        if path.is_dir():
            self._names[path.stat().st_ino] = {each.name: each.stat().st_ino for each in path.iterdir()}
        else:
            self._bytes[path.stat().st_ino] = path.read_bytes()

    def begin(self) -> None:
        """All that is there now is on the disk."""
        self._bytes, self._names = {}, {}
        for path in (self.root, *self.root.rglob("*")):
            self._keep(path)

    def lose(self) -> None:
        """As after a power cut: names that were not synced are gone, or back; files that were not are empty."""
        self._restore(self.root)

    def _restore(self, folder: Path) -> None:
        names = self._names.get(folder.stat().st_ino, {})
        folders = {path.stat().st_ino: path for path in folder.iterdir() if path.is_dir()}
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
            elif path.stat().st_ino not in names.values():
                shutil.rmtree(path)
        for name, inode in names.items():
            if inode in folders:
                folders[inode].rename(folder / name)
                self._restore(folder / name)
            else:
                (folder / name).write_bytes(self._bytes.get(inode, b""))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    (tmp_path / "disk").mkdir()
    return Disk(tmp_path / "disk", monkeypatch)


def cuts(disk: Disk, act: Callable[[], object], before: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Act on a fresh disk, cut off at each call in turn; yields afterwards whether it was cut off, at last not."""
    number = 0
    while True:
        for path in disk.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        disk.left = 10**9
        before()
        disk.begin()
        disk.left, is_cut = number, False
        try:
            act()
        except Cut:
            is_cut = True
        disk.left = 10**9
        disk.lose()
        yield is_cut
        if not is_cut:
            assert number > 1
            return
        number += 1


def test_the_shim_loses_what_is_not_synced(disk: Disk) -> None:
    (disk.root / "before").write_text("x")
    disk.begin()
    (disk.root / "renamed").write_text("bytes that were never synced")
    (disk.root / "other").write_text("bytes that were")
    file = os.open(disk.root / "other", os.O_RDONLY)
    os.fsync(file)
    os.close(file)
    os.replace(disk.root / "renamed", disk.root / "before")
    folder = os.open(disk.root, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    (disk.root / "late").write_text("its name was never synced")
    disk.lose()
    assert {path.name: path.read_text() for path in disk.root.iterdir()} == {"before": "", "other": "bytes that were"}


@pytest.mark.parametrize("keep", [False, True])
def test_a_file_is_whole_or_as_it_was_whenever_the_power_goes(disk: Disk, keep: bool) -> None:
    path = disk.root / "file"
    for is_cut in cuts(disk, lambda: publish(path, lambda aside: aside.write_text("new"), keep=keep)):
        assert not path.exists() if is_cut and not path.exists() else path.read_text() == "new"
    assert path.read_text() == "new"
    for is_cut in cuts(disk, lambda: write_json(path, {"n": 2}), lambda: write_json(path, {"n": 1})):
        assert json.loads(path.read_text())["n"] in ((1, 2) if is_cut else (2,))
    table = pa.table({"a": [1, 2]})
    for is_cut in cuts(disk, lambda: write_table(path, table)):
        assert (is_cut and not path.exists()) or pq.read_table(path) == table


def test_a_folder_is_whole_or_not_there(disk: Disk) -> None:
    def write(aside: Path) -> None:
        (aside / "below").mkdir(parents=True)
        (aside / "below" / "shard").write_text("voxels")
        (aside / "zarr.json").write_text("{}")

    folder = disk.root / "folder"
    for is_cut in cuts(disk, lambda: publish(folder, write)):
        if folder.exists() or not is_cut:
            assert (folder / "below" / "shard").read_text() == "voxels" and (folder / "zarr.json").read_text() == "{}"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_folders_cannot_be_synced_files_are_published(tmp_path: Path, monkeypatch, code: int) -> None:
    """As on some network file systems, and systems other than Linux."""
    fsync, synced = os.fsync, []

    def of_files(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(code, os.strerror(code))
        synced.append(number)
        fsync(number)

    monkeypatch.setattr(os, "fsync", of_files)
    make_folder(tmp_path / "a" / "b")
    write_json(tmp_path / "a" / "b" / "file.json", {"n": 1})
    assert json.loads((tmp_path / "a" / "b" / "file.json").read_text()) == {"n": 1} and len(synced) == 1


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), IsADirectoryError(errno.EISDIR, "folder")])
def test_where_folders_cannot_be_opened_files_are_published(tmp_path: Path, monkeypatch, error: OSError) -> None:
    open_file = os.open

    def open_files(path: Path, *arguments: Any, **options: Any) -> int:
        if Path(path).is_dir() or Path(path).name == "locked":
            raise error
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_files)
    write_json(tmp_path / "file.json", {"n": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"n": 1}
    (tmp_path / "locked").write_text("a file is synced or said not to be")
    with pytest.raises(type(error)):
        sync_tree(tmp_path / "locked")


def test_a_disk_that_fails_as_a_folder_is_synced_is_no_file_system_without_it(tmp_path: Path, monkeypatch) -> None:
    def fail(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WorkspaceError, match="cannot be written: No space left on device"):
        write_json(tmp_path / "file.json", {"n": 1})


def test_a_scan_that_was_being_taken_in_is_stored_whole_at_the_next_attempt(disk: Disk, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 900, (12, 10, 8)).astype(np.int16)
    scan = write_nifti(tmp_path / "a.nii", voxels)
    volumes = disk.root / "volumes"

    def ingest() -> object:
        return take_in([scan], volumes, ArchiveSettings(coarse_size=8))

    whole: dict[str, bytes] = {}
    for _ in cuts(disk, ingest, volumes.mkdir):
        (record,) = ingest().records
        folder = volumes / f"{record['volume_id']}.ome.zarr"
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == (whole or found) and read_record(folder)["stored_bytes"] == record["stored_bytes"]
        whole = found
    assert len(whole) > 3 and all(whole.values())


def test_a_volume_of_which_a_file_is_cut_short_is_made_again(tmp_path: Path) -> None:
    """As a power cut left it before files were synced."""
    voxels = np.random.default_rng(0).integers(0, 900, (12, 10, 8)).astype(np.int16)
    scan, volumes = write_nifti(tmp_path / "a.nii", voxels), tmp_path / "archive" / "volumes"
    volumes.mkdir(parents=True)
    (record,) = take_in([scan], volumes, ArchiveSettings(coarse_size=8)).records
    (shard,) = (volumes / f"{record['volume_id']}.ome.zarr" / "0").glob("c.*")
    content, made = shard.read_bytes(), shard.stat().st_mtime_ns
    take_in([scan], volumes, ArchiveSettings(coarse_size=8))
    assert shard.stat().st_mtime_ns == made
    shard.write_bytes(b"")
    (again,) = take_in([scan], volumes, ArchiveSettings(coarse_size=8)).records
    assert shard.read_bytes() == content and again == record


def test_a_part_and_its_record_are_made_again_to_the_same_bytes(disk: Disk) -> None:
    rows = pa.Table.from_pylist(StorePlan().rows(TRAINING, range(2)), PATTERN)
    expected = b""
    for is_cut in cuts(disk, lambda: write_part(disk.root, 0, rows)):
        record = read_whole_part(part_path(disk.root, 0))
        assert record is not None or is_cut
        if record is None:
            write_part(disk.root, 0, rows)
        content = part_path(disk.root, 0).read_bytes()
        assert content == (expected or content)
        expected = content


def test_training_goes_on_from_a_whole_checkpoint(disk: Disk) -> None:
    def save(step: int) -> None:
        save_checkpoint(disk.root / "checkpoints", step, {"weights": torch.full((3,), float(step))})

    for is_cut in cuts(disk, lambda: save(2), lambda: save(1)):
        newest = newest_checkpoint(disk.root / "checkpoints")
        assert newest is not None and newest.step in ((1, 2) if is_cut else (2,))
        assert newest.state["weights"].tolist() == [float(newest.step)] * 3


def test_an_artifact_is_finished_with_all_that_it_is_made_of_or_not_at_all(disk: Disk) -> None:
    folder = disk.root / "sweep"
    counts, cost = (
        SweepCounts(points=1, trials=1, failures=0, stopped=0),
        SweepCost(seconds=0, cpu_seconds=0, gpu_seconds=0, stopped_seconds=0, failed_seconds=0),
    )
    manifest = SweepManifest(counts=counts, objective="loss", mode="min", varied=(), table=(), cost=cost, seeds_note="")
    stage = Stage(SWEEPS, folder, {"seed": 0}, {})

    def make() -> None:
        with stage.claimed():
            write_json(folder / "trial.json", {"loss": 1})
            stage.finish(manifest)

    for is_cut in cuts(disk, make):
        finished = stage.finished() if folder.exists() else None
        assert finished is not None or is_cut
        if finished is not None:
            assert json.loads((folder / "trial.json").read_text()) == {"loss": 1}
        make()
        assert stage.finished() is not None
