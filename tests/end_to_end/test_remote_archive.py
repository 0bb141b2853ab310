"""An archive in an object store: the same commands, the same bytes, a server started here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raygenesis.archive.catalogue import read_catalogue
from raygenesis.archive.ingest import ingest
from raygenesis.archive.inspection import fault_of, info, show
from raygenesis.archive.store import read_region, volume_folder
from raygenesis.settings import load_settings
from raygenesis.workspace.object_store import RemotePath
from raygenesis.workspace.workspace import Workspace
from tests.support.nifti import grey, write_nifti
from tests.support.s3 import BUCKET, s3_server

OVERRIDES = ["archive.coarse_size=8", "archive.chunk=8", "archive.shard=16"]
KEY = "5a" * 32


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    folder = tmp_path / "s3"
    folder.mkdir()
    with s3_server(folder) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield {**os.environ, **variables}


def raygenesis(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raygenesis", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def contents(archive: Path | RemotePath) -> dict[str, bytes]:
    files = (path for path in archive.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path).removeprefix(str(archive)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_an_archive_in_an_object_store_is_the_one_on_a_disk(
    ray_cluster: None, environment: dict[str, str], tmp_path: Path
) -> None:
    scans, url = tmp_path / "scans", f"s3://{BUCKET}/hospital/ws"
    for number in range(4):
        write_nifti(scans / f"sub-{number}.nii.gz", grey((20, 16, 12), seed=number))
    (scans / "broken.nii").write_bytes(b"no scan")
    remote, local = Workspace.open(url), Workspace.open(tmp_path / "ws")
    for workspace in (remote, local):
        workspace.private.mkdir(parents=True, exist_ok=True)
        (workspace.private / "key").write_text(KEY)
    # Workers have the environment that Ray was started with: Ray anew for the one that needs the store's.
    done = raygenesis(environment, "ingest", "--scans", str(scans), "--workspace", url, *OVERRIDES)
    assert done.returncode == 0, done.stderr
    assert "4 volumes of 4 subjects, 1 failures" in done.stdout
    ingest(scans, local, load_settings("cpu-small", OVERRIDES))
    assert contents(remote.archive) == contents(local.archive)

    write_nifti(scans / "sub-9.nii.gz", grey((20, 16, 12), seed=9))
    done = raygenesis(environment, "ingest", "--scans", str(scans), "--workspace", url, *OVERRIDES)
    assert "5 scans were known already" in done.stdout and "5 volumes of 5 subjects" in done.stdout
    assert info(remote)[0].startswith("5 volumes of 5 subjects, 1 failures")
    assert info(remote)[-1].endswith("[broken.nii]")
    rows = read_catalogue(remote.catalog)
    assert [fault_of(remote.volumes, row) for row in rows] == [""] * 5
    assert show(remote, tmp_path / "sheet.png") == 5

    region = (slice(3, 9), slice(0, 5), slice(7, 20))
    (first, *_) = read_catalogue(local.catalog)
    folders = [volume_folder(workspace.volumes, first["volume_id"]) for workspace in (remote, local)]
    assert np.array_equal(*(read_region(folder, 0, region) for folder in folders))
