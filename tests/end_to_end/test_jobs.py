"""`ray job submit` against a cluster started as the README says."""

from __future__ import annotations

import contextlib
import json
import os
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

from tests.end_to_end.conftest import TINY, MainJob

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
    port, dashboard = free_port(), free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    command = [
        bin_folder / "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={port}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        # The Ray that other tests share holds the usual port, and without one of its own this agent takes no jobs.
        f"--dashboard-agent-listen-port={free_port()}",
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


def test_pretrain_as_a_job(main_job: MainJob, cluster: dict[str, str], tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(main_job.workspace, workspace)
    done = submit(cluster, "jobs/pretrain.py", "--workspace", str(workspace), "--name", "job", *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stderr + done.stdout
    assert json.loads((workspace / "runs" / "job" / "manifest.json").read_text())["counts"]["epochs"] == 3

    missing = submit(cluster, "jobs/pretrain.py", "--workspace", str(tmp_path / "missing"))
    assert missing.returncode != 0
    assert "does not exist: make one with `raygenesis run` or `ingest`" in missing.stdout
