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
import pyarrow as pa
import pytest

from raygenesis.archive.catalogue import CATALOGUE, read_catalogue
from raygenesis.archive.ingest import ingest
from raygenesis.archive.intake.known_files import read_known_files
from raygenesis.archive.intake.parallel import take_in_block
from raygenesis.archive.intake.take_in import (
    MAX_CRASHES,
    take_in,
)
from raygenesis.archive.store import read_region
from raygenesis.errors import ScanError, SettingsError, WorkspaceError
from raygenesis.settings import load_settings
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import blake2b_of, read_json, read_table
from raygenesis.workspace.manifest import ArchiveCounts, ArchiveManifest
from raygenesis.workspace.manifest_files import as_tree
from raygenesis.workspace.workspace import Workspace
from tests.support.data import HEADS, needs_heads
from tests.support.nifti import AFFINE, add_scan, grey, make_scans, write_nifti

pytestmark = pytest.mark.usefixtures("ray_cluster")

OVERRIDES = ["archive.coarse_size=8", "archive.chunk=8", "archive.shard=16"]
SETTINGS = load_settings("cpu-small", [*OVERRIDES, "archive.keep_ids=true"])
HASHED = load_settings("cpu-small", OVERRIDES)
EVERYTHING = (slice(None),) * 3


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


def read_failures(workspace: Workspace) -> list[dict[str, str]]:
    return read_table(workspace.archive / "failures.parquet", schema=FAILURES).to_pylist()


def counts(scans: int, volumes: int, subjects: int, failures: int = 0, **others: int) -> ArchiveCounts:
    return ArchiveCounts(scans=scans, volumes=volumes, subjects=subjects, failures=failures, **others)


@pytest.fixture(scope="module")
def mixed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Workspace, ArchiveManifest]:
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
    (scans / "participants.tsv").write_text("participant_id\n")
    (scans / "out.nii.gz").symlink_to("/etc/hostname")
    workspace = Workspace.open(folder / "workspace")
    return scans, workspace, ingest(scans, workspace, SETTINGS)


def test_bad_files_among_good_ones_are_listed_with_their_reasons(mixed) -> None:
    _, workspace, manifest = mixed
    reasons = {row["source"]: row["reason"] for row in read_failures(workspace)}
    expected = {
        "cut.nii.gz": "cut short or damaged",
        "flat.nii.gz": "every voxel is 0",
        "nan.nii": "64 of 64 voxels are NaN",
        "out.nii.gz": "a link that leads out",
        "sub-02/sub-02_T1w.nii.gz": "same voxels as copies/again.nii.gz",
        "text.nii": "not readable as NIfTI",
        "time.nii.gz": "choose archive.fourth_axis",
        "zcopy.nii": "same voxels as copies/again.nii.gz",
    }
    assert list(reasons) == sorted(expected)
    assert all(words in reasons[source] for source, words in expected.items())
    assert manifest.counts == counts(scans=13, volumes=5, subjects=5, failures=8, other_files=1)


def test_a_catalogue_row_is_the_scan_s_own_facts(mixed) -> None:
    scans, workspace, _ = mixed
    rows = {row["source"]: row for row in read_catalogue(workspace.catalog)}
    assert sorted(rows) == ["copies/again.nii.gz", *(f"sub-{n:02d}/sub-{n:02d}_T1w.nii.gz" for n in (0, 1, 3, 4))]
    row, path = rows["sub-03/sub-03_T1w.nii.gz"], scans / "sub-03/sub-03_T1w.nii.gz"
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    assert row["volume_id"] == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert row["subject_id"] == "sub-03"
    assert row["source_bytes"] == path.stat().st_size
    assert list(row) == CATALOGUE.names
    assert (row["modality"], row["num_channels"], row["tags"], row["corrections"]) == ("", 1, "{}", [])
    assert row["notes"] == ["no unit of length is stored: mm assumed"]
    assert row["shape"] == [*canonical.shape[::-1]] == [12, 9, 10]
    assert row["spacing_mm"] == [2, 1, 3] and row["dtype"] == "int16"
    assert np.allclose(np.reshape(row["affine"], (4, 4)), canonical.affine)
    assert [*row["low"], *row["high"]] == pytest.approx(np.percentile(canonical.get_fdata(), (0.5, 99.5)))
    folder = workspace.volumes / f"{row['volume_id']}.ome.zarr"
    assert np.array_equal(read_region(folder, 0, EVERYTHING).T, np.asarray(canonical.dataobj))
    assert read_region(folder, len(row["levels"]) - 1, EVERYTHING).shape == (6, 5, 5)
    assert row["stored_bytes"] <= sum(map(len, contents(folder).values()))


def test_one_folder_per_volume_and_nothing_half_written(mixed) -> None:
    _, workspace, manifest = mixed
    assert sorted(path.name for path in workspace.archive.iterdir()) == [
        "catalog.parquet", "failures.parquet", "manifest.json", "started.json", "volumes",
    ]  # fmt: skip
    volumes = list(workspace.volumes.iterdir())
    assert all(volume.name.endswith(".ome.zarr") and (volume / "zarr.json").is_file() for volume in volumes)
    rows = read_catalogue(workspace.catalog)
    assert {volume.name for volume in volumes} == {f"{row['volume_id']}.ome.zarr" for row in rows}
    assert sum(row["stored_bytes"] for row in rows) == manifest.stored_bytes
    assert json.loads(json.dumps(as_tree(manifest))) == read_json(workspace.archive / "manifest.json")


def test_a_second_ingest_does_nothing_and_says_so(mixed, capsys: pytest.CaptureFixture[str]) -> None:
    scans, workspace, manifest = mixed
    before = times(workspace.root)
    assert ingest(scans, workspace, SETTINGS) == manifest
    assert times(workspace.root) == before
    done = f"ingest: nothing to do: all 13 scans are in {workspace.archive} (5 volumes, 8 failures)\n"
    assert capsys.readouterr().out == done


def test_other_settings_are_refused_by_name(mixed) -> None:
    scans, workspace, _ = mixed
    with pytest.raises(WorkspaceError, match=r"archive\.chunk was 8 and is now 16"):
        ingest(scans, workspace, load_settings("cpu-small", [*OVERRIDES, "archive.keep_ids=true", "archive.chunk=16"]))


def test_a_damaged_manifest_is_named(mixed, tmp_path: Path) -> None:
    scans, workspace, _ = mixed
    copy = Workspace.open(shutil.copytree(workspace.root, tmp_path / "copy"))
    manifest = copy.archive / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(WorkspaceError, match=r"manifest\.json is damaged"):
        ingest(scans, copy, SETTINGS)


def test_two_workspaces_hold_the_same_bytes(mixed, tmp_path: Path) -> None:
    scans, workspace, manifest = mixed
    moved = shutil.copytree(scans, tmp_path / "elsewhere", symlinks=True)
    other = Workspace.open(tmp_path / "other")
    again = ingest(moved, other, SETTINGS)
    assert contents(other.volumes) == contents(workspace.volumes)
    assert read_catalogue(other.catalog) == read_catalogue(workspace.catalog)
    assert again.fingerprint == manifest.fingerprint


def test_a_killed_ingest_ends_as_one_never_killed(mixed, tmp_path: Path) -> None:
    scans, workspace, _ = mixed
    copy = Workspace.open(shutil.copytree(workspace.root, tmp_path / "copy"))
    whole, half = sorted(copy.volumes.iterdir())[:2]
    kept = times(whole)
    (half / "zarr.json").unlink()
    shutil.copytree(half, copy.volumes / f".{half.name}.0a1b2c3d")
    for name in ("manifest.json", "catalog.parquet"):
        (copy.archive / name).unlink()
    shutil.rmtree(copy.private)
    (copy.archive / "attempts").mkdir()
    (copy.archive / "attempts" / half.name.partition(".")[0]).write_bytes(b"." * MAX_CRASHES)
    ingest(scans, copy, SETTINGS)
    assert not (copy.archive / "attempts").exists()
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
    assert new == {f"{blake2b_of(scans / 'sub-07/sub-07_T1w.nii.gz')}.ome.zarr"}
    assert before.items() <= after.items()
    assert second.counts.known == 3
    assert [row for row in read_catalogue(workspace.catalog) if row["subject_id"] != "sub-07"] == rows
    assert (first.counts.volumes, second.counts.volumes) == (3, 4)
    assert first.fingerprint != second.fingerprint


def test_a_scan_packed_since_does_not_count_twice(scans: Path, workspace: Workspace) -> None:
    plain = add_scan(scans, 0, ".nii")
    (scans / "sub-00/sub-00_T1w.nii.gz").unlink()
    ingest(scans, workspace, SETTINGS)
    plain.unlink()
    add_scan(scans, 0, ".nii.gz")
    manifest = ingest(scans, workspace, SETTINGS)
    sources = sorted(row["source"] for row in read_catalogue(workspace.catalog))
    assert sources == [f"sub-{number:02d}/sub-{number:02d}_T1w.nii.gz" for number in range(3)]
    assert manifest.counts == counts(scans=3, volumes=3, subjects=3, known=2)
    assert len(list(workspace.volumes.iterdir())) == 3


def test_a_removed_scan_s_volume_stays_until_it_is_pruned(scans: Path, workspace: Workspace, capsys) -> None:
    ingest(scans, workspace, SETTINGS)
    rows = read_catalogue(workspace.catalog)
    shutil.rmtree(scans / "sub-01")
    for _ in range(2):  # the second has nothing to do
        manifest = ingest(scans, workspace, SETTINGS)
        assert manifest.counts == counts(scans=2, volumes=3, subjects=3, known=2, removed=1)
        assert read_catalogue(workspace.catalog) == rows and len(list(workspace.volumes.iterdir())) == 3
    assert "1 volumes stay whose files are gone or no longer readable: --prune removes them" in capsys.readouterr().out
    for _ in range(2):
        manifest = ingest(scans, workspace, SETTINGS, prune=True)
        assert manifest.counts == counts(scans=2, volumes=2, subjects=2, known=2)
        left = [row for row in rows if row["subject_id"] != "sub-01"]
        assert read_catalogue(workspace.catalog) == left and len(list(workspace.volumes.iterdir())) == 2


def test_what_is_known_is_not_read_again(scans: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused scan is known as well; a changed one is not, and its volume takes the old one's place."""
    (scans / "text.nii").write_text("not a scan")
    ingest(scans, workspace, SETTINGS)
    before = {row["source"]: row for row in read_catalogue(workspace.catalog)}
    changed = write_nifti(scans / "sub-01/sub-01_T1w.nii.gz", grey((9, 12, 10), seed=77), AFFINE)
    read = scans.parent / "read"
    monkeypatch.setattr("raygenesis.archive.intake.parallel.take_in_block", recording(read))
    manifest = ingest(scans, workspace, SETTINGS)
    assert read.read_text().split() == ["sub-01/sub-01_T1w.nii.gz"]
    assert manifest.counts == counts(scans=4, volumes=3, subjects=3, failures=1, known=3)
    after = {row["source"]: row for row in read_catalogue(workspace.catalog)}
    assert after.keys() == before.keys()
    assert [source for source in after if after[source] != before[source]] == ["sub-01/sub-01_T1w.nii.gz"]
    assert after["sub-01/sub-01_T1w.nii.gz"]["volume_id"] == blake2b_of(changed)
    assert {path.name for path in workspace.volumes.iterdir()} == {f"{r['volume_id']}.ome.zarr" for r in after.values()}
    assert [row["source"] for row in read_failures(workspace)] == ["text.nii"]


def recording(read: Path) -> Any:
    """`take_in_block` that writes down what it is asked for; a closure, so that Ray's workers get it as it is."""

    def take_in_block_and_note(block: pa.Table, **arguments: Any) -> pa.Table:
        with read.open("a") as file:
            file.writelines(f"{files[0]}\n" for files in block["files"].to_pylist())
        return take_in_block(block, **arguments)

    return take_in_block_and_note


def test_a_volume_that_was_removed_is_made_again(scans: Path, workspace: Workspace) -> None:
    manifest = ingest(scans, workspace, SETTINGS)
    rows, before = read_catalogue(workspace.catalog), contents(workspace.volumes)
    shutil.rmtree(min(workspace.volumes.iterdir()))
    assert ingest(scans, workspace, SETTINGS).fingerprint == manifest.fingerprint
    assert read_catalogue(workspace.catalog) == rows and contents(workspace.volumes) == before


def test_names_are_hashed_and_only_the_private_folder_leads_back(scans: Path, workspace: Workspace) -> None:
    (scans / "sub-SECRET.nii").write_text("not a scan")
    shutil.copy(scans / "sub-01/sub-01_T1w.nii.gz", scans / "sub-01/zcopy.nii.gz")
    ingest(scans, workspace, HASHED)
    public = b"".join(contents(workspace.archive).values())
    assert not any(name in public for name in (b"sub-0", b"SECRET", str(scans).encode()))
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog)}
    sources = read_known_files(workspace.private)
    assert sorted(sources) == [
        "sub-00/sub-00_T1w.nii.gz", "sub-01/sub-01_T1w.nii.gz", "sub-01/zcopy.nii.gz", "sub-02/sub-02_T1w.nii.gz",
        "sub-SECRET.nii",
    ]  # fmt: skip
    for path, source in sources.items():
        for volume_id in source["volume_ids"]:
            assert volume_id == blake2b_of(scans / path)
    assert (
        rows[blake2b_of(scans / "sub-00/sub-00_T1w.nii.gz")]["source"]
        == (sources["sub-00/sub-00_T1w.nii.gz"]["source"])
    )
    assert len({row["subject_id"] for row in rows.values()}) == 3
    reasons = {row["source"]: row["reason"] for row in read_failures(workspace)}
    assert "not readable" in reasons[sources["sub-SECRET.nii"]["source"]]
    original = sources["sub-01/sub-01_T1w.nii.gz"]["source"]
    assert reasons[sources["sub-01/zcopy.nii.gz"]["source"]] == f"same voxels as {original}"
    other = Workspace.open(workspace.root.with_name("other"))
    ingest(scans, other, HASHED)
    assert {row["subject_id"] for row in read_catalogue(other.catalog)}.isdisjoint(
        row["subject_id"] for row in rows.values()
    )


def test_a_pattern_that_finds_no_subject_is_refused_and_one_that_misses_some_said(scans, workspace, capsys) -> None:
    with pytest.raises(SettingsError, match=r"archive\.subject_pattern='IXI' matches none of the 3 paths"):
        ingest(scans, workspace, load_settings("cpu-small", [*OVERRIDES, "archive.subject_pattern=IXI"]))
    assert not workspace.archive.exists()
    ingest(scans, workspace, load_settings("cpu-small", [*OVERRIDES, "archive.subject_pattern=sub-0[01]"]))
    assert "matches all paths but 1, the first sub-02/sub-02_T1w.nii.gz" in capsys.readouterr().out


def test_a_fourth_axis_is_split_into_volumes_of_one_subject(tmp_path: Path, workspace: Workspace) -> None:
    series = grey((5, 6, 7, 3))
    path = write_nifti(tmp_path / "scans/sub-1_bold.nii.gz", series)
    chosen = load_settings("cpu-small", [*OVERRIDES, "archive.keep_ids=true", "archive.fourth_axis=split"])
    assert ingest(tmp_path / "scans", workspace, chosen).counts == counts(scans=1, volumes=3, subjects=1)
    rows = read_catalogue(workspace.catalog)
    assert [row["volume_id"] for row in rows] == [f"{blake2b_of(path)}-{n:04d}" for n in range(3)]
    for number, row in enumerate(rows):
        stored = read_region(workspace.volumes / f"{row['volume_id']}.ome.zarr", 0, EVERYTHING)
        assert np.array_equal(stored.T, series[..., number])
    add_scan(tmp_path / "scans", 7)
    again = ingest(tmp_path / "scans", workspace, chosen)
    assert again.counts == counts(scans=2, volumes=4, subjects=2, known=1)
    assert read_catalogue(workspace.catalog, [row["volume_id"] for row in rows]) == rows


def test_other_names_are_the_same_archive_and_another_grouping_is_not(scans: Path, workspace: Workspace) -> None:
    """Who is held out, and so every later stage, depends on which scans are of one subject, not on names."""
    before = ingest(scans, workspace, SETTINGS)
    stored = times(workspace.volumes)
    fingerprints = []
    for name in ("sub-99", "sub-01"):
        (there,) = scans.glob("*/sub-00_T1w.nii.gz") if name == "sub-99" else scans.glob("*/sub-99_T1w.nii.gz")
        (scans / name).mkdir(exist_ok=True)
        there.rename(scans / name / "sub-99_T1w.nii.gz")
        fingerprints.append(ingest(scans, workspace, SETTINGS).fingerprint)
        assert {row["subject_id"] for row in read_catalogue(workspace.catalog)} == {name, "sub-01", "sub-02"}
        assert times(workspace.volumes) == stored
    assert fingerprints[0] == before.fingerprint != fingerprints[1]


def test_nothing_but_bad_files_is_an_error_that_names_the_first(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "scans").mkdir()
    for name in ("b.nii", "a.nii.gz"):
        (tmp_path / "scans" / name).write_text("not a scan")
    with pytest.raises(ScanError, match=r"none of the 2 scans in .* can be read; the first: a\.nii\.gz: not readable"):
        ingest(tmp_path / "scans", workspace, SETTINGS)
    assert not (workspace.archive / "manifest.json").exists()
    assert [row["source"] for row in read_failures(workspace)] == ["a.nii.gz", "b.nii"]
    add_scan(tmp_path / "scans", 1)
    assert ingest(tmp_path / "scans", workspace, SETTINGS).counts.volumes == 1


def test_an_archive_that_cannot_be_written_stops_the_ingest(scans, workspace, monkeypatch) -> None:
    """It is not the scans' fault: none of them becomes a failure."""
    (workspace.root / "file").write_bytes(b"")

    def elsewhere(block: pa.Table, volumes: Path, **arguments: Any) -> pa.Table:
        return take_in_block(block, volumes=volumes.parent.parent / "file/archive/volumes", **arguments)

    with monkeypatch.context() as patch, pytest.raises(WorkspaceError, match="cannot be written: Not a directory"):
        patch.setattr("raygenesis.archive.intake.parallel.take_in_block", elsewhere)
        ingest(scans, workspace, SETTINGS)
    assert not (workspace.archive / "manifest.json").exists() and not (workspace.archive / "failures.parquet").exists()
    assert ingest(scans, workspace, SETTINGS).counts == counts(scans=3, volumes=3, subjects=3)


def test_a_file_in_the_way_of_a_volume_is_replaced(scans: Path, workspace: Workspace) -> None:
    workspace.volumes.mkdir(parents=True)
    in_the_way = workspace.volumes / f"{blake2b_of(scans / 'sub-01/sub-01_T1w.nii.gz')}.ome.zarr"
    in_the_way.write_bytes(b"")
    assert ingest(scans, workspace, SETTINGS).counts == counts(scans=3, volumes=3, subjects=3)
    assert in_the_way.is_dir()


def test_a_stored_scan_is_not_decoded_again(mixed, monkeypatch: pytest.MonkeyPatch) -> None:
    scans, workspace, _ = mixed
    row = read_catalogue(workspace.catalog)[0]
    monkeypatch.setattr("raygenesis.archive.intake.take_in.read_scan", lambda *_: pytest.fail("decoded"))
    (record,) = take_in([scans / row["source"]], workspace.volumes, SETTINGS.archive).records
    assert {**record, "num_siblings": 1} == record
    assert {name: record[name] for name in record.keys() & row.keys()} == {
        name: value for name, value in row.items() if name not in ("subject_id", "source", "source_bytes")
    }


def test_radiographs_and_volumes_live_in_one_archive(tmp_path: Path, workspace: Workspace) -> None:
    write_nifti(tmp_path / "scans/a.nii.gz", grey((20, 30), np.uint8), np.diag([0.2, 0.3, 1, 1]))
    write_nifti(tmp_path / "scans/b.nii.gz", grey((20, 30, 4), np.uint8))
    chosen = load_settings("paper-2d", [*OVERRIDES, "archive.keep_ids=true"])
    assert ingest(tmp_path / "scans", workspace, chosen).counts == counts(scans=2, volumes=2, subjects=2)
    (flat,), (deep,) = (read_catalogue(workspace.catalog, ndim=ndim) for ndim in (2, 3))
    assert (flat["source"], flat["shape"]) == ("a.nii.gz", [30, 20])
    assert flat["spacing_mm"] == pytest.approx([0.3, 0.2])
    assert (deep["source"], deep["shape"]) == ("b.nii.gz", [4, 30, 20])


@needs_heads
def test_real_heads_are_stored_as_nibabel_turns_them(tmp_path: Path, workspace: Workspace) -> None:
    heads = sorted(HEADS.glob("*.nii.gz"))[3:5]
    (tmp_path / "heads").mkdir()
    for head in heads:
        shutil.copy(head, tmp_path / "heads")
    pattern = ["archive.subject_pattern=(IXI[0-9]+)", "archive.keep_ids=true"]
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
        assert record.pop("num_siblings") == 1
        assert record.items() <= row.items()
