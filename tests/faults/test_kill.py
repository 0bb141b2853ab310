"""The main job killed with SIGKILL at any point continues, and ends with what an undisturbed run makes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.data import HEADS, needs_heads
from tests.support.main_job import TINY, content, losses

pytestmark = [needs_heads, pytest.mark.slow]

POINTS: dict[str, Callable[[Path], bool]] = {
    "ingest": lambda ws: len(list(ws.glob("archive/volumes/*/zarr.json"))) >= 3,
    "autoencoder": lambda ws: (ws / "autoencoder" / "metrics.parquet").exists(),
    "discover": lambda ws: any(ws.glob("patterns/part-*.parquet")),
    "pretrain": lambda ws: (ws / "runs" / "default" / "metrics.parquet").exists(),
}


def start(scans: Path, workspace: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raygenesis", "run", "--scans", scans, "--workspace", workspace, *TINY]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not reached():
        assert process.poll() is None, "the run ended before the point of the kill"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_in_every_stage_the_main_job_ends_as_if_undisturbed(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for head in sorted(HEADS.glob("*.nii.gz"))[:12]:
        shutil.copy(head, scans)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for workspace in (undisturbed, killed):  # one key, so that subjects have one name in both
        (workspace / "private").mkdir(parents=True)
        (workspace / "private" / "key").write_text("5e" * 32)
    assert start(scans, undisturbed).wait() == 0
    for point, reached in POINTS.items():
        kill_when(start(scans, killed), lambda reached=reached: reached(killed))
        assert not (killed / "runs" / "default" / "manifest.json").exists(), f"{point}: nothing was left to continue"
    assert start(scans, killed).wait() == 0
    assert content(killed).keys() == content(undisturbed).keys()
    assert content(killed) == content(undisturbed)
    assert losses(killed) == losses(undisturbed)
