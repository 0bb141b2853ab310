"""Whatever is in a file, reading it ends: voxels, or one sentence; no crash, no hang, no memory beyond bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data import SHARED
from tests.support.mutations import FORMATS, NEED_REAL

CHECKOUT = Path(__file__).resolve().parents[3]
QUICK, THOROUGH = 40, 1200  # damaged inputs of each of 21 formats
MOST_MIB = 1024


def read_damaged(name: str, count: int, seconds: float, folder: Path) -> dict[str, int]:
    """Counts of damaged inputs read and refused, by a process of its own."""
    if name in NEED_REAL and not SHARED.is_dir():
        pytest.skip(f"real DICOM files are not at {SHARED}")
    command = [sys.executable, "-m", "tests.support.mutations", name, "0", str(count), str(folder)]
    try:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"{(hung.stdout or b'').decode().splitlines()[-1:]} hung")
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]}: exit {done.returncode}, {done.stderr[-2000:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["read"] + counts["refused"] == count
    assert counts["peak_mib"] < MOST_MIB
    return counts


@pytest.mark.parametrize("name", FORMATS)
def test_some_damage_of_every_format(name: str, tmp_path: Path) -> None:
    counts = read_damaged(name, QUICK, 120, tmp_path)
    assert counts["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_much_damage_of_every_format(name: str, tmp_path: Path) -> None:
    read_damaged(name, THOROUGH, 280, tmp_path)
