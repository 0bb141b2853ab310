"""Ingest: every scan once, whatever else lies beside it, and the same archive each time."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from raygenesis.archive.catalogue import read_catalogue
from raygenesis.archive.ingest import file_fingerprint, ingest, ingest_scan, read_failures
from raygenesis.archive.store import read_region
from raygenesis.config import load_settings
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.workspace import Workspace, read_json
from tests.archive.nifti import grey, write_nifti
from tests.data import HEADS, needs_heads

pytestmark = pytest.mark.usefixtures("ray_cluster")

OVERRIDES = ["archive.coarse_size=8", "archive.chunk=8", "archive.shard=16"]
SETTINGS = load_settings("cpu-small", OVERRIDES)
AFFINE = np.array([[0, 0, 3.0, -10], [-1, 0, 0, 40], [0, 2, 0, 5], [0, 0, 0, 1]])  # stored P S R
EVERYTHING = (slice(None),) * 3


def add_scan(scans: Path, number: int, suffix: str = ".nii.gz") -> Path:
    voxels = grey((9, 12, 10), seed=number)
    return write_nifti(scans / f"sub-{number:02d}" / f"sub-{number:02d}_T1w{suffix}", voxels, AFFINE)


def make_scans(scans: Path, count: int) -> Path:
    for number in range(count):
        add_scan(scans, number)
    return scans


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return make_scans(tmp_path / "scans", 3)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def mixed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Workspace, dict[str, Any]]:
    """Five good scans, one of them under two names more, and files that are no scans."""
    folder = tmp_path_factory.mktemp("mixed")
    scans = make_scans(folder / "scans", 5)
    good = add_scan(scans, 2)
    (scans / "copies").mkdir()
    shutil.copy(good, scans / "copies" / "again.nii.gz")
    (scans / "zcopy.nii").write_bytes(gzip.decompress(good.read_bytes()))
    (scans / "cut.nii.gz").write_bytes(good.read_bytes()[:-400])
    (scans / "text.nii").write_text("not a scan")
    write_nifti(scans / "time.nii.gz", grey((4, 4, 4, 2)))
    write_nifti(scans / "nan.nii", np.full((4, 4, 4), np.nan, np.float32))
    write_nifti(scans / "flat.nii.gz", np.zeros((4, 4, 4), np.int16))
    workspace = Workspace.open(folder / "workspace")
    return scans, workspace, ingest(scans, workspace, SETTINGS)


def test_bad_files_among_good_ones_are_listed_with_their_reasons(mixed) -> None:
    _, workspace, manifest = mixed
    reasons = {row["source"]: row["reason"] for row in read_failures(workspace)}
    expected = {
        "cut.nii.gz": "cut short or damaged",
        "flat.nii.gz": "every voxel is 0",
        "nan.nii": "64 of 64 voxels are NaN",
        "sub-02/sub-02_T1w.nii.gz": "same voxels as copies/again.nii.gz",
        "text.nii": "not readable as NIfTI",
        "time.nii.gz": "4 dimensions",
        "zcopy.nii": "same voxels as copies/again.nii.gz",
    }
    assert list(reasons) == sorted(expected)
    assert all(words in reasons[source] for source, words in expected.items())
    assert manifest["counts"] == {"scans": 12, "volumes": 5, "subjects": 5, "failures": 7}


def test_a_catalogue_row_is_the_scan_s_own_facts(mixed) -> None:
    scans, workspace, _ = mixed
    rows = {row["source"]: row for row in read_catalogue(workspace.catalog)}
    assert sorted(rows) == ["copies/again.nii.gz", *(f"sub-{n:02d}/sub-{n:02d}_T1w.nii.gz" for n in (0, 1, 3, 4))]
    row, path = rows["sub-03/sub-03_T1w.nii.gz"], scans / "sub-03/sub-03_T1w.nii.gz"
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    assert row["volume_id"] == hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    assert row["subject_id"] == "sub-03"
    assert (row["source_bytes"], row["source_mtime_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert row["shape"] == [*canonical.shape[::-1]] == [12, 9, 10]
    assert row["spacing_mm"] == [2, 1, 3] and row["dtype"] == "int16"
    assert np.allclose(np.reshape(row["affine"], (4, 4)), canonical.affine)
    assert (row["low"], row["high"]) == pytest.approx(np.percentile(canonical.get_fdata(), (0.5, 99.5)))
    folder = workspace.volumes / f"{row['volume_id']}.ome.zarr"
    assert np.array_equal(read_region(folder, 0, EVERYTHING).T, np.asarray(canonical.dataobj))
    assert read_region(folder, len(row["levels"]) - 1, EVERYTHING).shape == (6, 5, 5)
    assert row["stored_bytes"] <= sum(map(len, contents(folder).values()))


def test_one_folder_per_different_file_and_nothing_half_written(mixed) -> None:
    _, workspace, manifest = mixed
    assert sorted(path.name for path in workspace.archive.iterdir()) == [
        "catalog.parquet", "failures.parquet", "manifest.json", "volumes",
    ]  # fmt: skip
    volumes = list(workspace.volumes.iterdir())
    assert all(volume.name.endswith(".ome.zarr") and (volume / "zarr.json").is_file() for volume in volumes)
    assert len(volumes) == 6  # zcopy.nii holds other bytes: only its voxels are known
    assert manifest == read_json(workspace.archive / "manifest.json")


def test_a_second_ingest_does_nothing_and_says_so(mixed, capsys: pytest.CaptureFixture[str]) -> None:
    scans, workspace, manifest = mixed
    before = times(workspace.root)
    assert ingest(scans, workspace, SETTINGS) == manifest
    assert times(workspace.root) == before
    assert capsys.readouterr().out == f"ingest: nothing to do: all 12 scans are in {workspace.archive}\n"


def test_other_settings_are_refused_by_name(mixed) -> None:
    scans, workspace, _ = mixed
    with pytest.raises(WorkspaceError, match=r"archive\.chunk was 8 and is now 16"):
        ingest(scans, workspace, load_settings("cpu-small", [*OVERRIDES, "archive.chunk=16"]))


def test_a_damaged_manifest_is_named(mixed, tmp_path: Path) -> None:
    scans, workspace, _ = mixed
    copy = Workspace.open(shutil.copytree(workspace.root, tmp_path / "copy"))
    manifest = copy.archive / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(WorkspaceError, match=r"manifest\.json is damaged"):
        ingest(scans, copy, SETTINGS)


def test_two_workspaces_hold_the_same_bytes(mixed, tmp_path: Path) -> None:
    scans, workspace, manifest = mixed
    moved = shutil.copytree(scans, tmp_path / "elsewhere")
    other = Workspace.open(tmp_path / "other")
    again = ingest(moved, other, SETTINGS)
    assert contents(other.volumes) == contents(workspace.volumes)
    assert read_catalogue(other.catalog) == read_catalogue(workspace.catalog)
    assert again["fingerprint"] == manifest["fingerprint"]


def test_a_killed_ingest_ends_as_one_never_killed(mixed, tmp_path: Path) -> None:
    scans, workspace, _ = mixed
    copy = Workspace.open(shutil.copytree(workspace.root, tmp_path / "copy"))
    whole, half = sorted(copy.volumes.iterdir())[:2]
    kept = times(whole)
    (half / "zarr.json").unlink()
    shutil.copytree(half, copy.volumes / f".{half.name}.0a1b2c3d")
    for name in ("manifest.json", "catalog.parquet"):
        (copy.archive / name).unlink()
    ingest(scans, copy, SETTINGS)
    assert contents(copy.volumes) == contents(workspace.volumes)
    assert times(whole) == kept
    assert read_catalogue(copy.catalog) == read_catalogue(workspace.catalog)


def test_a_scan_that_is_added_is_all_that_is_added(scans: Path, workspace: Workspace) -> None:
    first = ingest(scans, workspace, SETTINGS)
    rows, before = read_catalogue(workspace.catalog), times(workspace.volumes)
    add_scan(scans, 7)
    second = ingest(scans, workspace, SETTINGS)
    after = times(workspace.volumes)
    new = {name.split("/")[0] for name in after.keys() - before.keys()}
    assert new == {f"{file_fingerprint(scans / 'sub-07/sub-07_T1w.nii.gz')}.ome.zarr"}
    assert before.items() <= after.items()
    assert [row for row in read_catalogue(workspace.catalog) if row["subject_id"] != "sub-07"] == rows
    assert (first["counts"]["volumes"], second["counts"]["volumes"]) == (3, 4)
    assert first["fingerprint"] != second["fingerprint"]


def test_a_removed_scan_stays_and_one_packed_since_does_not_count_twice(scans: Path, workspace: Workspace) -> None:
    plain = add_scan(scans, 0, ".nii")
    (scans / "sub-00/sub-00_T1w.nii.gz").unlink()
    ingest(scans, workspace, SETTINGS)
    plain.unlink()
    add_scan(scans, 0, ".nii.gz")
    shutil.rmtree(scans / "sub-01")
    manifest = ingest(scans, workspace, SETTINGS)
    sources = sorted(row["source"] for row in read_catalogue(workspace.catalog))
    assert sources == [f"sub-{number:02d}/sub-{number:02d}_T1w.nii.gz" for number in range(3)]
    assert manifest["counts"] == {"scans": 2, "volumes": 3, "subjects": 3, "failures": 0}


def test_the_same_scans_of_other_subjects_are_another_archive(scans: Path, workspace: Workspace) -> None:
    before = ingest(scans, workspace, SETTINGS)
    (scans / "sub-00").rename(scans / "sub-99")
    (scans / "sub-99/sub-00_T1w.nii.gz").rename(scans / "sub-99/sub-99_T1w.nii.gz")
    stored = times(workspace.volumes)
    after = ingest(scans, workspace, SETTINGS)
    assert {row["subject_id"] for row in read_catalogue(workspace.catalog)} == {"sub-99", "sub-01", "sub-02"}
    assert times(workspace.volumes) == stored
    assert after["fingerprint"] != before["fingerprint"]


def test_nothing_but_bad_files_is_an_error_that_names_the_first(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "scans").mkdir()
    for name in ("b.nii", "a.nii.gz"):
        (tmp_path / "scans" / name).write_text("not a scan")
    with pytest.raises(ScanError, match=r"none of the 2 scans in .* can be read; the first: a\.nii\.gz: not readable"):
        ingest(tmp_path / "scans", workspace, SETTINGS)
    assert not (workspace.archive / "manifest.json").exists()
    assert [row["source"] for row in read_failures(workspace)] == ["a.nii.gz", "b.nii"]
    add_scan(tmp_path / "scans", 1)
    assert ingest(tmp_path / "scans", workspace, SETTINGS)["counts"]["volumes"] == 1


def test_an_archive_that_cannot_be_written_stops_the_ingest(scans: Path, workspace: Workspace) -> None:
    """It is not the scans' fault: none of them becomes a failure."""
    workspace.volumes.mkdir(parents=True)
    in_the_way = workspace.volumes / f"{file_fingerprint(scans / 'sub-01/sub-01_T1w.nii.gz')}.ome.zarr"
    in_the_way.write_bytes(b"")
    with pytest.raises(WorkspaceError, match=f"{in_the_way.name} cannot be written: Not a directory"):
        ingest(scans, workspace, SETTINGS)
    assert not (workspace.archive / "manifest.json").exists() and not (workspace.archive / "failures.parquet").exists()
    in_the_way.unlink()
    assert ingest(scans, workspace, SETTINGS)["counts"] == {"scans": 3, "volumes": 3, "subjects": 3, "failures": 0}


def test_a_stored_scan_is_not_decoded_again(mixed, monkeypatch: pytest.MonkeyPatch) -> None:
    scans, workspace, _ = mixed
    row = read_catalogue(workspace.catalog)[0]
    file = {"source": row["source"], "num_bytes": row["source_bytes"], "mtime_ns": row["source_mtime_ns"]}
    monkeypatch.setattr("raygenesis.archive.ingest.read_volume", lambda *_: pytest.fail("decoded"))
    outcome = ingest_scan(file, scans, workspace.volumes, SETTINGS.archive, 3)
    assert json.loads(outcome["row"]) == row


def test_a_file_that_vanishes_is_a_failure_of_its_own(tmp_path: Path) -> None:
    file = {"source": "gone.nii", "num_bytes": 1, "mtime_ns": 0}
    outcome = ingest_scan(file, tmp_path, tmp_path / "volumes", SETTINGS.archive, 3)
    assert outcome == {
        "source": "gone.nii", "row": "", "reason": "cannot be read (No such file or directory)", "fault": "",
    }  # fmt: skip


def test_radiographs_are_two_dimensional(tmp_path: Path, workspace: Workspace) -> None:
    write_nifti(tmp_path / "scans/a.nii.gz", grey((20, 30), np.uint8), np.diag([0.2, 0.3, 1, 1]))
    write_nifti(tmp_path / "scans/b.nii.gz", grey((20, 30, 4), np.uint8))
    ingest(tmp_path / "scans", workspace, load_settings("paper-2d", OVERRIDES))
    (row,), (failure,) = read_catalogue(workspace.catalog), read_failures(workspace)
    assert (row["source"], row["shape"]) == ("a.nii.gz", [30, 20])
    assert row["spacing_mm"] == pytest.approx([0.3, 0.2])
    assert failure["source"] == "b.nii.gz" and "is a volume" in failure["reason"]


@needs_heads
def test_real_heads_are_stored_as_nibabel_turns_them(tmp_path: Path, workspace: Workspace) -> None:
    heads = sorted(HEADS.glob("*.nii.gz"))[3:5]
    (tmp_path / "heads").mkdir()
    for head in heads:
        shutil.copy(head, tmp_path / "heads")
    pattern = ["archive.subject_pattern=(IXI[0-9]+)"]
    ingest(tmp_path / "heads", workspace, load_settings("cpu-small", pattern))
    rows = sorted(read_catalogue(workspace.catalog), key=lambda row: row["source"])
    assert [row["subject_id"] for row in rows] == [head.name[:6] for head in heads]
    for row, head in zip(rows, heads, strict=True):
        canonical = nibabel.as_closest_canonical(nibabel.load(head))
        folder = workspace.volumes / f"{row['volume_id']}.ome.zarr"
        real = read_region(folder, 0, EVERYTHING).T * row["slope"] + row["intercept"]
        assert np.allclose(real, canonical.get_fdata())
        assert np.allclose(np.reshape(row["affine"], (4, 4)), canonical.affine)
        record = json.loads((folder / "zarr.json").read_text())["attributes"]["raygenesis"]
        assert record.items() <= row.items()
