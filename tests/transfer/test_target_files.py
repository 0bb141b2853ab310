"""What a target's files hold, read once and again when a file is no longer as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from raygenesis.errors import PassingError
from raygenesis.transfer import resolved, target_files
from raygenesis.transfer.examples import CLASSIFICATION, SEGMENTATION, Example, ImageFile, LabelFile, Target
from raygenesis.transfer.resolved import FILES, target_inputs
from raygenesis.transfer.target_files import digest_of_content, forget_digests
from raygenesis.workspace import faults
from raygenesis.workspace.files import blake2b_of, xxh3_of
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.manifest_files import Started
from raygenesis.workspace.workspace import Workspace


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that were read, in this process rather than in Ray's."""
    found: list[str] = []

    def each(function, blocks):
        for block in blocks:
            found.extend(block)
            yield function(block)

    monkeypatch.setattr(target_files.fan_out, "each", each)
    return found


def files(folder: Path) -> Target:
    for name in ("a.nii", "b.nii", "b-label.nii"):
        (folder / name).write_bytes(name.encode() * 10)
    (folder / "c.mhd").write_text("NDims = 3\nElementDataFile = c.raw\n")
    (folder / "c.raw").write_bytes(b"voxels")
    examples = [Example(name, name, ImageFile((folder / name,))) for name in ("a.nii", "c.mhd")]
    examples.append(Example("b", "b", ImageFile((folder / "b.nii",)), LabelFile(folder / "b-label.nii")))
    return Target(SEGMENTATION, 3, (), tuple(examples))


def replace_bytes(path: Path) -> None:
    """By others of the same number, with the modification time of before, as `cp -p` and rsync leave it."""
    times = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_file_is_read_once(tmp_path: Path, read: list[str]) -> None:
    target, workspace = files(tmp_path), Workspace(tmp_path / "workspace")
    whole = digest_of_content(target, workspace)
    names = ["a.nii", "c.mhd", "b.nii", "b-label.nii"]
    assert read == [str(tmp_path / name) for name in names]
    contents = {name: [blake2b_of(tmp_path / name)] for name in names}
    contents["c.mhd"].append(blake2b_of(tmp_path / "c.raw"))
    assert whole == digest([digest(contents[name]) for name in names])
    assert digest_of_content(target, workspace) == whole and len(read) == 4
    forget_digests(workspace)
    assert digest_of_content(target, workspace) == whole and len(read) == 8
    assert workspace.private.stat().st_mode & 0o777 == 0o700  # paths may name patients


@pytest.mark.parametrize("name", ["a.nii", "b.nii", "b-label.nii", "c.mhd", "c.raw"])
def test_one_byte_of_one_file_makes_another_target_though_size_and_time_stay(tmp_path, read, name) -> None:
    target, workspace = files(tmp_path), Workspace(tmp_path / "workspace")
    whole = digest_of_content(target, workspace)
    read.clear()
    replace_bytes(tmp_path / name)
    assert digest_of_content(target, workspace) != whole
    assert read == [str(tmp_path / name.replace(".raw", ".mhd"))]
    replace_bytes(tmp_path / name)
    assert digest_of_content(target, workspace) == whole


def test_a_damaged_table_costs_reading_alone(tmp_path: Path, read: list[str]) -> None:
    target, workspace = files(tmp_path), Workspace(tmp_path / "workspace")
    whole = digest_of_content(target, workspace)
    (workspace.private / "target-files.parquet").write_bytes(b"")
    assert digest_of_content(target, workspace) == whole and len(read) == 8


def test_what_an_earlier_version_began_goes_on_as_it_was(tmp_path, read, monkeypatch, capsys) -> None:
    target, workspace = files(tmp_path), Workspace(tmp_path / "workspace")
    monkeypatch.setattr(resolved, "digest_of", lambda target, reads_labels=False: "listed")
    new = target_inputs(target, None, workspace)
    assert new == {"target": "listed", FILES: digest_of_content(target, workspace)}
    assert target_inputs(target, Started(settings={}, inputs=new), workspace) == new
    assert "an earlier version" not in capsys.readouterr().out
    assert target_inputs(target, Started(settings={}, inputs={"target": "old"}), workspace) == {"target": "listed"}
    assert "told images by their sizes: see to it that none was replaced" in capsys.readouterr().out


def test_labels_are_listed_by_content_only_where_an_earlier_version_began(tmp_path, read, monkeypatch) -> None:
    target, workspace = files(tmp_path), Workspace(tmp_path / "workspace")
    earlier, looked_at = Started(settings={}, inputs={"target": "old"}), []
    monkeypatch.setattr(resolved, "xxh3_of", lambda path: looked_at.append(path) or xxh3_of(path))
    new, old = target_inputs(target, None, workspace), target_inputs(target, earlier, workspace)
    assert looked_at == [tmp_path / "b-label.nii"]
    replace_bytes(tmp_path / "b-label.nii")
    after = target_inputs(target, None, workspace)
    assert after["target"] == new["target"] and after[FILES] != new[FILES] and len(looked_at) == 1
    assert target_inputs(target, earlier, workspace)["target"] != old["target"]


def test_another_target_out_of_reach_is_not_looked_at(tmp_path: Path, read: list[str], monkeypatch) -> None:
    monkeypatch.setattr(faults, "wait", lambda number: None)
    (tmp_path / "here").mkdir()
    (tmp_path / "away").mkdir()
    here, away, workspace = files(tmp_path / "here"), files(tmp_path / "away"), Workspace(tmp_path / "workspace")
    contents = [digest_of_content(target, workspace) for target in (here, away)]
    stamp, is_away = target_files._stamp, [True]

    def stamp_in_reach(paths: list[str]) -> str:
        if is_away[0] and str(tmp_path / "away") in paths[0]:
            raise OSError(errno.ESTALE, "Stale file handle")
        return stamp(paths)

    monkeypatch.setattr(target_files, "_stamp", stamp_in_reach)
    read.clear()
    replace_bytes(tmp_path / "here" / "a.nii")  # the table is written anew
    assert digest_of_content(here, workspace) != contents[0] and read == [str(tmp_path / "here" / "a.nii")]
    with pytest.raises(PassingError, match="the target's files cannot be reached in 7 attempts"):
        digest_of_content(away, workspace)
    is_away[0] = False
    assert digest_of_content(away, workspace) == contents[1] and len(read) == 1


def test_a_target_without_files_of_labels_has_those_of_its_images(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "a.nii").write_bytes(b"a")
    example = Example("a", "a", ImageFile((tmp_path / "a.nii",)), value=1)
    digest_of_content(Target(CLASSIFICATION, 3, ("x", "y"), (example, example)), Workspace(tmp_path / "workspace"))
    assert read == [str(tmp_path / "a.nii")]
