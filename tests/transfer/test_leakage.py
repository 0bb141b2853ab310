"""Who pretraining has seen: by the bytes of files, by names, and by what the stores hold."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raygenesis.archive.catalogue import CATALOGUE, held_out_subjects, read_catalogue
from raygenesis.archive.intake.identity import open_identity
from raygenesis.archive.intake.take_in import earlier_fingerprint, scan_fingerprint
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.schema import PATTERN
from raygenesis.patterns.writer import part_path
from raygenesis.settings import Settings, as_yaml, settings_from
from raygenesis.transfer.examples import Example, ImageFile
from raygenesis.transfer.leakage import Origin, seen_subjects
from raygenesis.transfer.runs import runs_of
from raygenesis.workspace import faults
from raygenesis.workspace.files import blake2b_of, write_table
from raygenesis.workspace.manifest import ArchiveCounts, ArchiveManifest, StoreCounts, StoreManifest
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.workspace import Workspace
from tests.support.s3 import BUCKET, s3_server

STORE = StoreManifest(
    counts=StoreCounts(
        patterns=2, validation=1, volumes=2, parts=1, failures=0, references=1, coordinates=1, neighbours=1
    ),
    cube_shape=(8, 8, 8), raw_bytes=1024,
)  # fmt: skip


def chosen(**archive: Any) -> Settings:
    return settings_from({"seed": 4, "validation_fraction": 0.25, "archive": archive})


def origin(workspace: Workspace, **archive: Any) -> Origin:
    settings = chosen(**archive)
    return Origin(workspace, settings.ndim, settings.validation_fraction, settings.seed, settings.archive.keep_ids)


def keep(workspace: Workspace, rows: list[dict[str, Any]]) -> None:
    workspace.archive.mkdir(parents=True, exist_ok=True)
    open_identity(workspace, keep_ids=False)
    rows = [{"shape": [9, 9, 9], **row} for row in rows]
    write_table(workspace.catalog, pa.Table.from_pylist(rows, CATALOGUE))


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Workspace, list[Example]]:
    """Ten scans, eight of which the archive holds (under other paths and subject names)."""
    examples = []
    for n in range(10):
        path = tmp_path / f"t{n}.nii"
        path.write_bytes(np.random.default_rng(n).bytes(100))  # all of one size
        examples.append(Example(path.name, f"t{n}", ImageFile((path,))))
    workspace = Workspace.open(tmp_path / "workspace")
    keep(workspace, [
        {"volume_id": blake2b_of(example.image.paths[0]), "subject_id": f"sub-{example.subject}",
         "source": f"x/{example.name}", "source_bytes": 100}
        for example in examples[:8]
    ])  # fmt: skip
    return workspace, examples


def learnt_from(workspace: Workspace) -> set[str]:
    rows = read_catalogue(workspace.catalog)
    return {row["subject_id"] for row in rows} - held_out_subjects(rows, 0.25, seed=4)


def test_without_an_archive_nobody_is_seen(archive: Any, tmp_path: Path) -> None:
    assert seen_subjects(archive[1], origin(Workspace.open(tmp_path / "new"))) == set()


def test_files_of_the_archives_training_split_are_recognised_by_their_bytes(archive: Any) -> None:
    workspace, examples = archive
    expected = {subject.removeprefix("sub-") for subject in learnt_from(workspace)}
    assert len(expected) == 6
    assert seen_subjects(examples, origin(workspace)) == expected


def test_so_are_those_of_an_archive_that_named_scans_otherwise(archive: Any) -> None:
    """Weights outlive formats: what they learnt from must not be tested on."""
    workspace, examples = archive
    names = {blake2b_of(path): earlier_fingerprint([path]) for each in examples for path in each.image.paths}
    rows = [{**row, "volume_id": names[row["volume_id"]]} for row in read_catalogue(workspace.catalog)]
    keep(workspace, sorted(rows, key=lambda row: row["volume_id"]))
    assert all(len(row["volume_id"]) == 16 for row in rows)
    seen = seen_subjects(examples, origin(workspace))
    assert {f"sub-{subject}" for subject in seen} == learnt_from(workspace) and seen


@pytest.mark.parametrize(("of_archive", "other"), [
    ("scan_fingerprint", "earlier_fingerprint"), ("earlier_fingerprint", "scan_fingerprint"),
])  # fmt: skip
def test_a_file_is_read_once_as_the_archive_names_scans_and_again_where_it_cannot_be_reached(
    archive: Any, monkeypatch: pytest.MonkeyPatch, of_archive: str, other: str
) -> None:
    workspace, examples = archive
    name_of, tried = {"scan_fingerprint": scan_fingerprint, "earlier_fingerprint": earlier_fingerprint}[of_archive], []
    rows = read_catalogue(workspace.catalog)
    for row, example in zip(rows, examples, strict=False):
        row["volume_id"] = name_of(example.image.paths)
    keep(workspace, sorted(rows, key=lambda row: row["volume_id"]))
    expected = seen_subjects(examples, origin(workspace))

    def stale_once(paths: tuple[Path, ...]) -> str:
        tried.append(paths)
        if len(tried) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return name_of(paths)

    monkeypatch.setattr(faults, "wait", lambda number: None)
    monkeypatch.setattr(f"raygenesis.transfer.leakage.{of_archive}", stale_once)
    monkeypatch.setattr(f"raygenesis.transfer.leakage.{other}", lambda paths: pytest.fail("read for another name"))
    assert seen_subjects(examples, origin(workspace)) == expected and expected
    assert tried == [examples[0].image.paths, *(each.image.paths for each in examples)]


def test_of_a_size_that_the_archive_does_not_have_nothing_is_hashed(
    archive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, examples = archive
    for example in examples:
        example.image.paths[0].write_bytes(b"another size")
    monkeypatch.setattr("raygenesis.transfer.leakage.scan_fingerprint", lambda paths: pytest.fail("hashed"))
    assert seen_subjects(examples, origin(workspace)) == set()


def test_volumes_of_other_dimensions_do_not_change_who_was_held_out(archive: Any) -> None:
    """Training takes those of its own dimensions, and splits these."""
    workspace, examples = archive
    learnt = {subject.removeprefix("sub-") for subject in learnt_from(workspace)}
    rows = read_catalogue(workspace.catalog)
    flat = [
        {**row, "volume_id": f"{number + 40:016x}", "shape": [9, 9], "source": f"flat/{number}", "source_bytes": 7}
        for number, row in enumerate(reversed(rows[:5]))
    ]
    keep(workspace, [*flat, *rows])
    assert learnt_from(workspace) != {f"sub-{subject}" for subject in learnt}  # of all together others would be
    assert seen_subjects(examples, origin(workspace)) == learnt


@pytest.mark.parametrize("keep_ids", [False, True])
def test_another_scan_of_a_training_subject_is_recognised_by_the_name(archive: Any, keep_ids: bool) -> None:
    """Also where the archive holds a keyed hash of it; under another key nobody is recognised."""
    workspace, examples = archive
    identity = open_identity(workspace, keep_ids)
    rows = read_catalogue(workspace.catalog)
    keep(workspace, [
        {**row, "subject_id": identity.subject(row["subject_id"].removeprefix("sub-")), "source_bytes": -1}
        for row in rows
    ])  # fmt: skip
    seen = seen_subjects(examples, origin(workspace, keep_ids=keep_ids))
    assert {identity.subject(name) for name in seen} == learnt_from(workspace)
    assert len(seen) == 6
    (workspace.private / "key").write_text("00" * 32)
    assert len(seen_subjects(examples, origin(workspace, keep_ids=keep_ids))) == (6 if keep_ids else 0)


@pytest.mark.parametrize("store", ["patterns", "crops"])
def test_what_a_store_holds_counts_as_seen_even_if_the_seed_has_changed(archive: Any, store: str) -> None:
    workspace, examples = archive
    seen = seen_subjects(examples, origin(workspace))
    held_out = [example for example in examples[:8] if example.subject not in seen]
    ids = [blake2b_of(example.image.paths[0]) for example in held_out]
    folder = getattr(workspace, store)
    folder.mkdir()
    rows = [{"split": split, "volume_id": i} for split, i in zip(("training", "validation"), ids, strict=True)]
    write_table(part_path(folder, 0), pa.Table.from_pylist(rows, PATTERN))
    write_manifest(folder, STORE)
    assert seen_subjects(examples, origin(workspace)) == seen | {held_out[0].subject}


def test_a_scan_of_several_files_and_time_points_is_recognised_whatever_their_order(archive: Any) -> None:
    workspace, examples = archive
    paths = tuple(example.image.paths[0] for example in examples[8:])
    series = [Example("series", "new", ImageFile(paths[::-1]))]
    rows = read_catalogue(workspace.catalog)
    points = [
        {**rows[0], "volume_id": f"{scan_fingerprint(paths)}-{n:04d}", "subject_id": f"point {n}", "source_bytes": 200}
        for n in range(8)
    ]
    keep(workspace, [*rows, *points])
    assert seen_subjects(series, origin(workspace)) == {"new"}
    assert seen_subjects(examples[8:], origin(workspace)) == set()


def test_names_are_compared_as_the_archive_was_made_whatever_is_said_now(archive: Any) -> None:
    workspace, examples = archive
    rows = [{"volume_id": f"{n:016x}", "subject_id": f"t{n}", "source_bytes": 1, "shape": [9, 9, 9]} for n in range(8)]
    write_table(workspace.catalog, pa.Table.from_pylist(rows, CATALOGUE))
    (workspace.private / "key").unlink()
    settings = {**chosen().archive.model_dump(mode="json"), "keep_ids": True}
    counts = ArchiveCounts(scans=8, volumes=8, subjects=8, failures=0)
    manifest = ArchiveManifest(settings={"archive": settings}, counts=counts, source_bytes=8)
    write_manifest(workspace.archive, manifest)
    seen = {name for name in learnt_from(workspace)}
    assert len(seen) == 6 and seen_subjects(examples, origin(workspace, keep_ids=False)) == seen


def run_in(workspace: Workspace, settings: Settings | None = None) -> str:
    """A run's folder, with its settings or without any."""
    folder = workspace.run("default")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.safetensors").write_bytes(b"never read")
    if settings is not None:
        (folder / "config.yaml").write_text(as_yaml(settings))
    return str(folder)


def seen_by(starts: list[str], examples: list[Example], own: Workspace) -> set[str]:
    return seen_subjects(examples, origin(own), runs_of(starts, own))


@pytest.mark.parametrize("given", ["{}", "{}/encoder.safetensors", "theirs={}"])
def test_subjects_of_the_workspace_that_a_run_lies_in_are_seen_too(archive: Any, tmp_path: Path, given: str) -> None:
    """By files and by names, which that workspace has hashed with a key of its own."""
    workspace, examples = archive
    expected = {subject.removeprefix("sub-") for subject in learnt_from(workspace)}
    rows, identity = read_catalogue(workspace.catalog), open_identity(workspace, keep_ids=False)
    by_name = min(expected)
    for row in rows:
        if row["subject_id"] == f"sub-{by_name}":
            row |= {"subject_id": identity.subject(by_name), "source_bytes": 1}
    keep(workspace, rows)
    next(e for e in examples if e.subject == by_name).image.paths[0].write_bytes(b"saved anew")
    own = Workspace.open(tmp_path / "own")
    assert seen_by([given.format(run_in(workspace, chosen()))], examples, own) == expected
    assert seen_by(["random"], examples, own) == set()


def test_without_that_workspaces_key_its_files_are_known_and_a_line_says_that_names_are_not(
    archive: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, examples = archive
    (workspace.private / "key").unlink()
    seen = seen_by([run_in(workspace, chosen())], examples, Workspace.open(tmp_path / "own"))
    assert {f"sub-{subject}" for subject in seen} == learnt_from(workspace)
    assert f"warning: without {workspace.private}/key" in capsys.readouterr().out
    with pytest.raises(WorkspaceError, match="put it back"):  # of one's own it is asked for
        seen_by(["random"], examples, workspace)


def test_the_runs_own_seed_says_whom_it_held_out(archive: Any, tmp_path: Path) -> None:
    workspace, examples = archive
    other = settings_from({"seed": 5, "validation_fraction": 0.5})
    held_out = held_out_subjects(read_catalogue(workspace.catalog), 0.5, seed=5)
    run = run_in(workspace, other)
    seen = seen_by([run], examples, Workspace.open(tmp_path / "own"))
    assert {f"sub-{subject}" for subject in seen} == {f"sub-t{n}" for n in range(8)} - held_out
    assert {f"sub-{name}" for name in seen_by(["default"], examples, workspace)} == (
        {f"sub-{name}" for name in seen} | learnt_from(workspace)
    )


def test_a_store_tells_whom_it_holds_without_its_archive(archive: Any, tmp_path: Path) -> None:
    _, examples = archive
    workspace = Workspace.open(tmp_path / "stores")
    rows = [{"split": "training", "volume_id": blake2b_of(examples[9].image.paths[0])}]
    workspace.patterns.mkdir()
    write_table(part_path(workspace.patterns, 0), pa.Table.from_pylist(rows, PATTERN))
    write_manifest(workspace.patterns, STORE)
    assert seen_by([run_in(workspace)], examples, Workspace.open(tmp_path / "own")) == {"t9"}


@pytest.mark.parametrize(("start", "name"), [
    ("{}/elsewhere/default", "default"), ("{}/genesis.pt", "genesis"), ("ours={}/encoder.safetensors", "ours"),
    ("default", "default"),
])  # fmt: skip
def test_where_nothing_tells_whom_weights_have_learnt_from_a_line_says_so(
    archive: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], start: str, name: str
) -> None:
    (tmp_path / "elsewhere" / "default").mkdir(parents=True)
    assert seen_by(["random", start.format(tmp_path)], archive[1], Workspace.open(tmp_path / "own")) == set()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"finetune: warning: whom {name} was pretrained on cannot be checked")


@pytest.mark.slow
def test_so_are_those_of_a_workspace_in_an_object_store(
    archive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, examples = archive
    with s3_server(tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        there = Workspace.open(f"s3://{BUCKET}/theirs")
        keep(there, read_catalogue(workspace.catalog))
        run = there.run("default")
        (run / "encoder.safetensors").write_bytes(b"never read")
        (run / "config.yaml").write_text(as_yaml(chosen()))
        seen = seen_by([str(run)], examples, Workspace.open(tmp_path / "own"))
        assert {f"sub-{subject}" for subject in seen} == learnt_from(workspace)
