"""What a run leaves in its folder: tables, checkpoints, progress, trackers; and training does not wait for them."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from raygenesis.errors import WorkspaceError
from raygenesis.training import recorder as module
from raygenesis.training.checkpoints import newest_checkpoint, steps_in
from raygenesis.training.metrics import forget_steps, read_metrics, write_steps
from raygenesis.training.recorder import CHECKPOINTS, STATUS_FILE, Recorder
from tests.support.experiments import Experiment, read_steps, run, settings, without_timings


class Listening:
    """A tracker that remembers."""

    def __init__(self):
        self.heard, self.closed = [], False

    def log(self, figures, step):
        self.heard.append((step, dict(figures)))

    def close(self):
        self.closed = True


def recorded(folder: Path, checkpoint_seconds: float = 0.0, trackers=(), state=None):
    recorder = Recorder(folder, checkpoint_seconds, trackers)
    rows = []

    def on_step(now, row):
        rows.append(dict(row))
        recorder.on_step(now, row)

    now = run(Experiment(), on_step=on_step, on_epoch=recorder.on_epoch, state=state, folder=folder)
    recorder.close(now)
    return now, rows


def test_tables_and_the_last_checkpoint_are_those_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STATUS_SECONDS", 0.0)
    tracker = Listening()
    now, rows = recorded(tmp_path, trackers=[tracker])
    assert read_steps(tmp_path) == rows
    assert read_metrics(tmp_path) == now.history
    step, state = newest_checkpoint(tmp_path / CHECKPOINTS)
    assert step == len(rows) == 20 and state["history"] == now.history
    assert tracker.closed
    steps = {step: figures for step, figures in tracker.heard if "step/loss" in figures}
    assert sorted(steps) == list(range(20))
    assert all(steps[row["step"]]["step/loss"] == row["loss"] for row in rows)
    epochs = [figures["epoch/val_mse"] for _, figures in tracker.heard if "epoch/val_mse" in figures]
    assert epochs == [row["val_mse"] for row in now.history]
    status = json.loads((tmp_path / STATUS_FILE).read_text())
    assert status["step"] == 20 and status["epochs"] == 4 and status["phase"] == "identity"
    assert 0 <= status["gap"] <= 1 and status["cubes_per_s"] > 0 and status["memory_gib"] > 0.05
    assert not [thread for thread in threading.enumerate() if thread.name == "recorder"]


def test_going_on_from_a_checkpoint_leaves_the_tables_of_one_run(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    now, rows = recorded(whole)

    class Stop(Exception):
        pass

    recorder = Recorder(stopped, 0.0)

    def on_step(now, row):
        recorder.on_step(now, row)
        if now.steps_done == 13:
            raise Stop

    with pytest.raises(Stop):
        run(Experiment(), on_step=on_step, on_epoch=recorder.on_epoch)
    recorder.close(None)
    step, state = newest_checkpoint(stopped / CHECKPOINTS)
    assert 0 < step <= 13
    write_steps(stopped, rows[step : step + 3])  # as if it had been killed before its checkpoint was whole
    forget_steps(stopped, step)
    assert without_timings(read_steps(stopped)) == without_timings(rows[:step])
    again, _ = recorded(stopped, state=state)
    assert without_timings(read_steps(stopped)) == without_timings(rows)
    assert without_timings(read_metrics(stopped)) == without_timings(now.history)
    assert without_timings(again.history) == without_timings(now.history)


def test_training_does_not_wait_for_a_slow_disk_and_holds_two_copies_at_the_most(tmp_path, monkeypatch):
    free, saves = threading.Event(), []

    def slow(folder, step, state):
        saves.append(step)
        assert free.wait(20)

    monkeypatch.setattr(module, "save_checkpoint", slow)
    recorder = Recorder(tmp_path, 0.0)
    now = run(Experiment(), on_step=recorder.on_step, on_epoch=recorder.on_epoch)
    assert saves == [1]  # still being written, and training is at its end
    free.set()
    recorder.close(now)
    assert saves == [1, 20]
    assert [row["step"] for row in read_steps(tmp_path)] == list(range(20))


def test_no_checkpoint_before_its_time_but_one_at_the_end(tmp_path):
    recorded(tmp_path, checkpoint_seconds=3600)
    assert steps_in(tmp_path / CHECKPOINTS) == [20]


def test_what_cannot_be_written_ends_training_and_is_named(tmp_path):
    recorder = Recorder(tmp_path, 0.0)
    (tmp_path / "steps").write_text("a file where a folder should be")
    with pytest.raises((WorkspaceError, OSError), match="steps"):
        run(
            Experiment(settings=settings(num_epochs=200)),
            on_step=lambda now, row: (time.sleep(0.01), recorder.on_step(now, row)),
            on_epoch=recorder.on_epoch,
        )


def test_a_tracker_that_fails_is_left_out_and_told_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STATUS_SECONDS", 0.0)

    class Gone(Listening):
        def log(self, figures, step):
            super().log(figures, step)
            if step == 3:
                raise ConnectionError("the server is gone")

    gone, other = Gone(), Listening()
    now, _ = recorded(tmp_path, trackers=[gone, other])
    assert len(now.history) == 4 and gone.heard[-1][0] == 3
    assert {step for step, _ in other.heard} == set(range(20)) and other.closed
    (told,) = json.loads((tmp_path / STATUS_FILE).read_text())["lost"]
    assert told == "Gone is left out from now on: the server is gone"
