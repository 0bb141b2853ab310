"""A job's record, and what `status` makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from raygenesis.cluster import job as module
from raygenesis.cluster.gauges import GAUGES, _gauge, set_gauge
from raygenesis.cluster.job import recorded
from raygenesis.cluster.job_record import jobs_folder
from raygenesis.cluster.progress import progress, say
from raygenesis.cluster.status import status
from raygenesis.errors import ClusterError, SettingsError, WorkspaceError
from raygenesis.settings import PriceSettings
from raygenesis.workspace.failures import FAILURES
from raygenesis.workspace.files import write_table
from raygenesis.workspace.workspace import Workspace

FREE = PriceSettings()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


def record(workspace: Workspace) -> dict:
    (path,) = jobs_folder(workspace).glob("*.json")
    return json.loads(path.read_text())


def test_a_job_tells_what_it_did(workspace: Workspace) -> None:
    with recorded("embed", workspace), progress("embed", 4, "volumes") as ticker:
        say("embed", "begins")
        ticker.advance(3, note="half of them dark")
    job = record(workspace)
    assert (job["verb"], job["state"], job["process"]) == ("embed", "succeeded", os.getpid())
    stage = job["stages"][-1]
    assert (stage["stage"], stage["unit"], stage["done"], stage["total"]) == ("embed", "volumes", 3, 4)
    assert job["said"][-1] == "embed: begins"
    lines = list(status(workspace, FREE))
    assert lines[0].startswith("embed: succeeded, since ") and lines[-1] == "scans left out: none"
    assert "  embed: 3 of 4 volumes (75%)" in lines[1] and "half of them dark" in lines[1]


def test_failures_of_every_stage_are_counted(workspace: Workspace) -> None:
    with recorded("embed", workspace):
        for stage, number in (("archive", 2), ("crops", 1)):
            (workspace.root / stage).mkdir()
            rows = [{"source": "a", "reason": "damaged"}] * number
            write_table(workspace.root / stage / "failures.parquet", pa.Table.from_pylist(rows, FAILURES))
    last = list(status(workspace, FREE))[-1]
    assert last == "scans left out: archive 2, crops 1 (see `raygenesis archive info --failures`)"


def test_a_job_can_be_read_while_it_runs(workspace: Workspace) -> None:
    with recorded("crop", workspace), progress("crop", 1000, "crops") as ticker:
        ticker.advance(250)
        deadline = time.monotonic() + 20
        while not any("250 of 1,000" in line for line in _status(workspace)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lines = _status(workspace)
    assert lines[0].startswith("crop: running, since ")
    assert any(" left" in line for line in lines) and any("py-spy dump --pid" in line for line in lines)


def _status(workspace: Workspace) -> list[str]:
    try:
        return list(status(workspace, FREE))
    except WorkspaceError:
        return []


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (SettingsError("discovery.scales: lower extent_mm"), "failed", "discovery.scales: lower extent_mm"),
        (KeyError("x"), "failed", "KeyError: 'x'"),
        (KeyboardInterrupt(), "stopped", ""),
    ],
)
def test_how_it_ended_is_kept(workspace: Workspace, error: BaseException, state: str, told: str) -> None:
    with pytest.raises(type(error)), recorded("embed", workspace):
        raise error
    job = record(workspace)
    assert (job["state"], job["told"]) == (state, told)
    assert any(line.strip() == told for line in status(workspace, FREE)) or not told


def test_the_newest_job_comes_first_and_costs_are_told_where_there_are_prices(workspace: Workspace) -> None:
    jobs_folder(workspace).mkdir(parents=True)
    now = datetime.now(UTC)
    for number, verb in enumerate(("ingest", "embed", "discover")):
        job = {
            "verb": verb, "state": "succeeded", "started": (now - timedelta(hours=2)).isoformat(), "host": "h",
            "updated": now.isoformat(), "process": 1, "core_seconds": 36_000.0, "gpu_seconds": 7200.0, "stages": [],
            "said": [], "hardware": {"num_cores": 5, "num_gpus": 1, "num_nodes": 1, "processor": ""},
        }  # fmt: skip
        (jobs_folder(workspace) / f"2026010{number}-{verb}.json").write_text(json.dumps(job))
    lines = list(status(workspace, PriceSettings(cpu_hour=0.1, gpu_hour=3.0), most=2))
    assert [line.partition(":")[0] for line in lines if line.startswith(("ingest", "embed", "discover"))] == [
        "discover", "embed",
    ]  # fmt: skip
    assert sum("10.00 core hours, 2.00 GPU hours, 7.00 in cost" in line for line in lines) == 2
    assert "earlier jobs: 1 (--jobs 3 lists them)" in lines


def test_a_job_that_was_killed_is_not_heard_of(workspace: Workspace) -> None:
    with recorded("embed", workspace):
        pass
    (path,) = jobs_folder(workspace).glob("*.json")
    job = json.loads(path.read_text())
    job |= {"state": "running", "updated": (datetime.now(UTC) - timedelta(minutes=10)).isoformat()}
    path.write_text(json.dumps(job))
    assert next(status(workspace, FREE)).startswith("embed: not heard of for 10.0 min: killed, or cut off; the same")


def test_without_jobs_it_says_so(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="no job has been run"):
        list(status(workspace, FREE))


SLEEPER = """
import sys, time
from raygenesis.cluster.job import recorded
from raygenesis.workspace.workspace import Workspace
with recorded("embed", Workspace.open(sys.argv[1])):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("unwound", flush=True)
"""


def test_a_job_that_is_told_to_stop_unwinds_and_says_so(workspace: Workspace) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(workspace.root)], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    said = process.stdout.read()
    assert process.wait(20) == 143
    assert said.splitlines() == ["embed: stopped; the same command goes on with what is missing", "unwound"]
    assert record(workspace)["state"] == "stopped"


def test_a_stop_while_the_record_is_being_written_is_kept(workspace: Workspace, monkeypatch) -> None:
    with pytest.raises(SystemExit), recorded("embed", workspace):
        raise SystemExit
    assert record(workspace)["state"] == "stopped"
    running = module._Job("crop", workspace)
    monkeypatch.setattr(module, "_submission", running.say_stopped)  # as by a signal
    running._note()
    monkeypatch.setattr(module, "_submission", lambda: None)
    running._note()
    (path,) = jobs_folder(workspace).glob("*-crop-*.json")
    assert json.loads(path.read_text())["state"] == "stopped"


def test_a_record_that_cannot_be_written_does_not_end_the_job(workspace: Workspace) -> None:
    jobs_folder(workspace).parent.mkdir()
    jobs_folder(workspace).write_text("in the way")
    with pytest.raises(SettingsError, match="the job's own"), recorded("embed", workspace):
        raise SettingsError("the job's own")


@pytest.mark.parametrize("is_joined", [True, False])
def test_gauges_are_set_where_there_is_a_ray(monkeypatch: pytest.MonkeyPatch, is_joined: bool) -> None:
    told: list[tuple[str, float, dict[str, str]]] = []

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tags = name, set(tag_keys)

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tags.keys() == self.tags
            told.append((self.name, value, tags))

    metrics = types.ModuleType("ray.util.metrics")
    metrics.Gauge = Gauge
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: is_joined))
    monkeypatch.setitem(sys.modules, "ray.util.metrics", metrics)
    _gauge.cache_clear()
    for name, (_, tags) in GAUGES.items():
        set_gauge(name, 2.0, **dict.fromkeys(tags, "x"))
    _gauge.cache_clear()
    assert [name for name, *_ in told] == (list(GAUGES) if is_joined else [])


def test_a_job_with_whose_code_a_key_came_along_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "_ray_pkg_0123" / "project"
    (code / "made" / "private").mkdir(parents=True)
    monkeypatch.chdir(code)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "one"}}))
    place = Workspace.open(tmp_path / "workspace")
    with recorded("ingest", place):
        pass
    (code / "made" / "private" / "key").write_bytes(b"0")
    with pytest.raises(ClusterError, match=rf"private/key with it \({code}/made\)"), recorded("ingest", place):
        raise AssertionError("it has begun")
    monkeypatch.chdir(tmp_path)  # on one's own machine it lies where it belongs
    with recorded("ingest", place):
        pass


def test_nothing_of_a_workspace_goes_with_a_jobs_code(tmp_path: Path) -> None:
    """As Ray itself packs a working directory."""
    from ray._private.runtime_env.packaging import create_package

    for folder in ("code", "code/made"):
        (tmp_path / folder).mkdir()
    (tmp_path / "code" / "job.py").write_text("pass")
    workspace = Workspace.open(tmp_path / "code" / "made")
    workspace.private.mkdir()
    (workspace.private / "key").write_bytes(b"0")
    package = tmp_path / "package.zip"
    create_package(str(tmp_path / "code"), package, include_gitignore=False)
    assert zipfile.ZipFile(package).namelist() == ["job.py"]
