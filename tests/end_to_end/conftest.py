"""One small run of the main job on real heads, shared by the tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.support.data import HEADS

NUM_HEADS = 12
TINY = [
    "discovery.num_neighbours=6",
    "discovery.num_validation_neighbours=2",
    "discovery.num_coordinates=4",
    "autoencoder.num_epochs=2",
    "pretraining.base_width=2",
    "pretraining.num_classification_epochs=1",
    "pretraining.num_joint_epochs=2",
]


def raygenesis(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    command = [sys.executable, "-m", "raygenesis", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **(environment or {})}
    )


@dataclass(frozen=True)
class MainJob:
    """What the main job left: its scans, workspace and output."""

    scans: Path
    workspace: Path
    output: str


BAD_SCANS = {
    "truncated.nii.gz": "cut short or damaged",
    "with-nan.nii.gz": "NaN or infinite",
    "four-dimensional.nii.gz": "choose archive.fourth_axis",
    "not-nifti.nii.gz": "not readable as NIfTI",
    "zz-copy-of-the-first.nii.gz": "same voxels as",
}


@pytest.fixture(scope="session")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> MainJob:
    if not HEADS.is_dir():
        pytest.skip(f"real head scans are not at {HEADS}")
    root = tmp_path_factory.mktemp("main-job")
    scans = root / "scans"
    scans.mkdir()
    heads = sorted(HEADS.glob("*.nii.gz"))[:NUM_HEADS]
    for head in heads:
        shutil.copy(head, scans)
    _write_bad_scans(scans, heads[0])
    done = raygenesis("run", "--scans", scans, "--workspace", root / "workspace", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    return MainJob(scans, root / "workspace", done.stdout)


def _write_bad_scans(folder: Path, good: Path) -> None:
    content = good.read_bytes()
    (folder / "truncated.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "not-nifti.nii.gz").write_text("these are not the voxels you are looking for")
    (folder / "zz-copy-of-the-first.nii.gz").write_bytes(content)
    holed = np.random.default_rng(0).random((40, 40, 40), np.float32)
    holed[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(holed, np.eye(4)), folder / "with-nan.nii.gz")
    series = np.random.default_rng(0).random((20, 20, 20, 3), np.float32)
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), folder / "four-dimensional.nii.gz")
    # Sound, but smaller than a crop: archived, and then left out of discovery.
    tiny = np.random.default_rng(0).integers(0, 255, (16, 16, 16), np.uint8)
    nibabel.save(nibabel.Nifti1Image(tiny, np.eye(4)), folder / "tiny.nii.gz")
