"""One small run of the main job on real heads, shared by the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.support.data import HEADS
from tests.support.main_job import NUM_HEADS, TINY, MainJob, raygenesis


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
    return MainJob(scans, root / "workspace", done.stdout, done.stderr)


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
