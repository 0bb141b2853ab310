"""Figures reach the trackers' own files; what is not installed is named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from raygenesis.errors import SettingsError
from raygenesis.training.trackers import MLflow, TensorBoard, WandB, check_trackers


def test_tensorboard_reads_the_figures(tmp_path):
    board = TensorBoard(tmp_path, "default", {}, 0)
    for step, loss in ((0, 0.5), (1, 0.25)):
        board.log({"step/loss": loss}, step)
    board.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    values = [(event.step, value.tag, value.simple_value) for event in events(file) for value in event.summary.value]
    assert values == [(0, "step/loss", 0.5), (1, "step/loss", 0.25)]


def events(file: Path):
    """The records of an event file, by its published format: length, checksum, content, checksum."""
    content = file.read_bytes()
    while content:
        length = int.from_bytes(content[:8], "little")
        assert masked_crc32c(content[:8]) == int.from_bytes(content[8:12], "little")
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace" / "runs" / "default"
    folder.mkdir(parents=True)
    return folder


def test_mlflow_holds_settings_and_figures(run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = MLflow(run_folder, "default", {"base_width": 4, "trackers": ["mlflow"]}, 0)
    for step, loss in ((0, 0.5), (7, 0.25)):
        tracker.log({"step/loss": loss}, step)
    tracker.close()
    (metric,) = tmp_path.glob("mlruns/*/*/metrics/step/loss")
    assert [line.split()[1:] for line in metric.read_text().splitlines()] == [["0.5", "0"], ["0.25", "7"]]
    assert (metric.parents[2] / "params" / "base_width").read_text() == "4"


def test_wandb_writes_its_run_offline(run_folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = WandB(run_folder, "default", {"base_width": 4}, 0)
    tracker.log({"step/loss": 0.5}, 0)
    tracker.close()
    (file,) = run_folder.glob(f"wandb/offline-run-*-{(run_folder / 'wandb-id').read_text()}/*.wandb")
    deadline = time.monotonic() + 60  # a process of its own writes it
    while b"step/loss" not in file.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    check_trackers(["tensorboard", "mlflow", "wandb"])
    monkeypatch.setattr("raygenesis.training.trackers.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pretraining.trackers names wandb and the package wandb is not installed"):
        check_trackers(["wandb"])
