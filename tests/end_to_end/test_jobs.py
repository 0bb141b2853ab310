"""`ray job submit` against a cluster started as the README says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.main_job import NUM_HEADS, TINY, MainJob, raygenesis

CHECKOUT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head with token authentication; yields the environment that reaches it."""
    token = secrets.token_hex(32)
    bin_folder = Path(sys.executable).parent
    port, dashboard, metrics = free_port(), free_port(), free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "METRICS": f"http://127.0.0.1:{metrics}/metrics",
    }
    command = [
        bin_folder / "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={port}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        # The Ray that other tests share holds the usual port, and without one of its own this agent takes no jobs.
        f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    head = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}/api/version", token)
        yield environment
    finally:
        # A polite end would drain the node for half a minute.
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def _wait_for(url: str, token: str) -> None:
    deadline = time.monotonic() + 60
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, "the Ray head did not come up"
            time.sleep(0.5)


def submit(environment: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [
        "ray", "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime-env.yaml", "--", "python",
        *entrypoint,
    ]  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        # The dashboard answers a little before the agent that takes jobs is up.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


@pytest.mark.slow
def test_pretrain_as_a_job(main_job: MainJob, cluster: dict[str, str], tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(main_job.workspace, workspace)
    done = submit(cluster, "-m", "raygenesis", "pretrain", "--workspace", str(workspace), "--name", "job", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stderr + done.stdout
    assert json.loads((workspace / "runs" / "job" / "manifest.json").read_text())["counts"]["epochs"] == 3

    missing = submit(cluster, "-m", "raygenesis", "pretrain", "--workspace", str(tmp_path / "missing"))
    assert missing.returncode != 0
    assert "does not exist: make one with `raygenesis run` or `ingest`" in missing.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pipeline_stopped_and_submitted_again_goes_on_and_can_be_watched(
    main_job: MainJob, cluster: dict[str, str], tmp_path: Path
) -> None:
    scans, workspace = tmp_path / "scans", tmp_path / "workspace"
    scans.mkdir()
    for scan in sorted(main_job.scans.glob("*T1*"))[:NUM_HEADS]:
        shutil.copy(scan, scans)
    entrypoint = ["jobs/pipeline.py", "--scans", str(scans), "--workspace", str(workspace), *TINY]
    begun = ray("job", "submit", "--no-wait", *WITH, "python", *entrypoint, environment=cluster)
    name = re.search(r"raysubmit_\w+", begun.stdout)[0]
    gauges = {}
    deadline = time.monotonic() + 300
    while not any((workspace / "patterns").glob("part-*.parquet")):
        assert time.monotonic() < deadline, ray("job", "logs", name, environment=cluster).stdout[-3000:]
        gauges |= scraped(cluster["METRICS"])
        time.sleep(0.5)
    told = raygenesis("status", "--workspace", str(workspace)).stdout
    assert told.startswith("run: running, since ") and f"`ray job logs {name}`" in told and "dashboard: http" in told
    ray("job", "stop", name, environment=cluster)
    log = ray("job", "logs", name, environment=cluster).stdout
    assert log.rstrip().endswith("run: stopped; the same command goes on with what is missing"), log[-2000:]
    assert "run: stopped" in raygenesis("status", "--workspace", str(workspace)).stdout
    assert not (workspace / "runs" / "default" / "manifest.json").exists()

    done = submit(cluster, *entrypoint)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert any(line.startswith("ingest: nothing to do") for line in lines)
    assert any(line.startswith("run: everything is in ") for line in lines)
    assert "\x1b[2K" not in log and "\r" not in log
    stages = {tags["stage"] for tags, _ in gauges["ray_raygenesis_done"].values()}
    assert "ingest" in stages and gauges.keys() >= {"ray_raygenesis_rate", "ray_raygenesis_total"}

    begin = time.monotonic()
    refused = submit(
        cluster,
        "-m",
        "raygenesis",
        "pretrain",
        "--workspace",
        str(workspace),
        "--name",
        "gpu",
        "pretraining.use_gpu=true",
        *TINY,
    )
    assert refused.returncode != 0 and time.monotonic() - begin < 90  # starting the job included
    assert "with pretraining.use_gpu=true needs 1 × 1 CPU and 1 GPU" in refused.stdout
    assert not (workspace / "runs" / "gpu").exists()


WITH = ("--working-dir", ".", "--runtime-env", "jobs/runtime-env.yaml", "--")


def ray(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120
    )


def scraped(url: str) -> dict[str, dict[str, tuple[dict[str, str], float]]]:
    """Our gauges as Prometheus would read them: of each name the samples, by their tags."""
    try:
        page = urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        return {}
    found: dict[str, dict[str, tuple[dict[str, str], float]]] = {}
    for line in page.splitlines():
        if sample := re.fullmatch(r"(ray_raygenesis_\w+)\{(.*)\} (\S+)", line):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', sample[2]))
            found.setdefault(sample[1], {})[sample[2]] = (tags, float(sample[3]))
    return found
