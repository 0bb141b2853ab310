import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = (
    r"feed from files, 1 decoder\(s\): (\d+) cubes/s",
    r"corruptions models-genesis: (\d+) cubes/s",
    r"joint step, bf16, channels last +(\d+\.\d) cubes/s, .* GiB foreseen",
    r"classification step, fp32, contiguous +(\d+\.\d) cubes/s, .* GiB foreseen",
    r"embedding, fp32: (\d+) cubes/s",
    r"fine-tuning step, bf16: (\d+\.\d) patches/s",
    r"joint training, 1 worker\(s\): (\d+\.\d) cubes/s, 1.00 of linear",
)


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", "tests.benchmarks.device", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_a_cpu_every_part_is_measured():
    done = bench("--device", "cpu", "--width", "8", "--batch", "2")
    assert done.returncode == 0, done.stderr
    for row in ROWS:
        found = re.search(row, done.stdout)
        assert found and float(found[1]) > 0, f"{row}\n{done.stdout}"


def test_a_gpu_that_is_not_there_is_said():
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a GPU")
    done = bench("--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("torch finds no GPU here; give --device cpu")
