"""The command line is thin: it answers before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from raygenesis.cli import main
from raygenesis.cluster.job import recorded
from raygenesis.settings.completion import complete_preset, complete_setting
from raygenesis.workspace.hardware import Hardware
from raygenesis.workspace.records import as_json
from raygenesis.workspace.workspace import Workspace

SCRIPT = """
import sys
from raygenesis.cli import app
app(["--help"], standalone_mode=False)
print("imported:", *sorted({"SimpleITK", "pydicom", "gdcm", "nibabel", "ray", "torch"} & sys.modules.keys()))
"""


def test_help_imports_no_reader_and_no_engine() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout and done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("verb", ["run", "ingest"])
def test_scans_in_a_bucket_are_refused_before_anything_is_made(verb: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--scans", "s3://hospital/heads", "--workspace", str(tmp_path / "workspace")])
    assert ended.value.code == 2 and not (tmp_path / "workspace").exists()
    said = capsys.readouterr().err.strip()
    assert said == ("raygenesis: --scans s3://hospital/heads is not supported: mount the bucket or copy it first")


def test_jobs_are_printed_as_json(tmp_path: Path, capsys) -> None:
    workspace = Workspace.open(tmp_path)
    with recorded("verify", workspace):
        pass
    with pytest.raises(SystemExit, match="0"):
        main(["status", "--workspace", str(tmp_path), "--json"])
    (job,) = json.loads(capsys.readouterr().out)
    assert (job["verb"], job["state"]) == ("verify", "succeeded") and not job["error"]


def test_infinite_numbers_are_null_in_json() -> None:
    assert json.loads(as_json(Hardware(2, 0, 1, "x"))) == {
        "num_cores": 2, "num_gpus": 0, "num_nodes": 1, "processor": "x"
    }  # fmt: skip
    assert json.loads(as_json([OperatorShare(float("inf"))])) == [{"share": None}]


@dataclass(frozen=True)
class OperatorShare:
    share: float


def test_a_shell_completes_presets_and_settings() -> None:
    assert complete_preset("cpu") == ["cpu-medium", "cpu-small", "cpu-small-2d"]
    assert "pretraining.num_workers=" in complete_setting("pretraining.num_")
    assert complete_setting("nothing.") == []


def test_a_verb_that_is_none_is_refused_with_the_nearest(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["pretrian"])
    assert "pretrain" in capsys.readouterr().err.replace("pretrian", "")
