"""A sweep killed with SIGKILL goes on, and ends with the table of one that was never disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from raygenesis.settings import as_yaml
from raygenesis.workspace.files import read_json
from raygenesis.workspace.workspace import Workspace
from tests.support.planar import SHAPE, ramp
from tests.support.stores import StorePlan
from tests.support.sweeps import PLAN, swept, trial_files, without_seconds

pytestmark = pytest.mark.slow


def start(workspace: Workspace, preset: Path, space: Path, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raygenesis", "sweep", "--workspace", workspace.root, "--preset", preset]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, "--space", space, "--name", name], start_new_session=True, **quiet)


@pytest.mark.timeout(1200)
def test_a_killed_tpe_sweep_ends_as_if_undisturbed(tmp_path: Path) -> None:
    workspace, preset, space = Workspace(tmp_path / "w"), tmp_path / "preset.yaml", tmp_path / "space.yaml"
    StorePlan(**PLAN, shape=SHAPE, cube=ramp).write(workspace.patterns)
    preset.write_text(as_yaml(swept(search="tpe", num_points=8)))
    learning_rate = {"low": 1e-4, "high": 1e-1, "log": True}
    space.write_text(yaml.safe_dump({"pretraining.learning_rate": learning_rate, "pretraining.base_width": [1, 2, 4]}))
    assert start(workspace, preset, space, "undisturbed").wait() == 0
    folder, kept = workspace.sweep("killed"), {}
    for finished in (1, 5):
        process = start(workspace, preset, space, "killed")
        deadline = time.monotonic() + 400
        while len(trial_files(folder)) < finished:
            assert process.poll() is None, "the sweep ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (folder / "manifest.json").exists()
        kept = trial_files(folder)
    assert start(workspace, preset, space, "killed").wait() == 0
    after = trial_files(folder)
    assert {name: after[name] for name in kept} == kept and len(after) == 8  # none was trained twice
    tables = [read_json(workspace.sweep(name) / "manifest.json")["table"] for name in ("undisturbed", "killed")]
    assert without_seconds(tables[0]) == without_seconds(tables[1])
