"""What the first worker leaves in a run's folder while it trains, written by a thread: training does not wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from raygenesis.training.checkpoints import copy_state, save_checkpoint
from raygenesis.training.loop import Progress
from raygenesis.training.metrics import write_metrics, write_steps
from raygenesis.training.records import EpochRow, StepRow, TrainingStatus
from raygenesis.training.trackers import Tracker, finite_figures
from raygenesis.workspace.files import Place, write_json
from raygenesis.workspace.hardware import peak_memory_gib

STATUS_SECONDS = 1.0
CHECKPOINTS, STATUS_FILE = "checkpoints", "progress.json"


class Recorder:
    """Writes progress every second, a checkpoint every `checkpoint_seconds` and after the last epoch, tables with each.

    The tables are written before the checkpoint that belongs to them: they never lag behind where training would go
    on. Errors of the thread are raised in training, at the next step; a tracker that fails is left out from then on,
    and `progress.json` says why.
    """

    def __init__(self, folder: Place, checkpoint_seconds: float, trackers: Sequence[Tracker] = ()) -> None:
        self._folder, self._interval, self._trackers = folder, checkpoint_seconds, list(trackers)
        self._lost: list[str] = []  # why trackers were left out
        self._rows: list[StepRow] = []  # since the last checkpoint
        self._fresh: list[StepRow] = []  # since the last status
        self._saved = self._reported = time.monotonic()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._saving = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def on_step(self, progress: Progress, row: StepRow) -> None:
        """A step has been done."""
        self._rows.append(row)
        self._fresh.append(row)
        clock = time.monotonic()
        if clock - self._reported >= STATUS_SECONDS:
            self._reported = clock
            self._report(progress)
        if row["step"] + 1 == progress.steps_done:  # the state is of this step, and none of its rows is missing
            self._save_when_due(progress)

    def on_epoch(self, progress: Progress) -> None:
        """An epoch has ended, with its held-out figures."""
        history: list[EpochRow] = [row.copy() for row in progress.history]
        row = history[-1]
        self._report(progress)
        self._do(lambda: write_metrics(self._folder, history))
        # At its last step, as trackers forget figures of the step at which training goes on.
        last = progress.steps_done - 1
        self._do(lambda: self._track([(last, finite_figures(row, "epoch/"))]))
        self._save_when_due(progress)

    def close(self, progress: Progress | None) -> None:
        """Write the last checkpoint, unless training failed (None), and end the thread."""
        if progress is not None:
            self._save(progress)
        self._jobs.put(self._close_trackers)
        self._jobs.put(None)
        self._thread.join()
        if progress is not None:
            self._raise()

    def _save_when_due(self, progress: Progress) -> None:
        """Not while the one before is being written: two copies of a state at a time are enough."""
        if not self._saving and time.monotonic() - self._saved >= self._interval:
            self._save(progress)

    def _save(self, progress: Progress) -> None:
        self._saving, self._saved = True, time.monotonic()
        state, rows, self._rows = copy_state(progress.state()), self._rows, []

        def write() -> None:
            write_steps(self._folder, rows)
            write_metrics(self._folder, state["history"])
            save_checkpoint(self._folder / CHECKPOINTS, state["steps_done"], state)
            self._saving = False

        self._do(write)

    def _report(self, progress: Progress) -> None:
        rows, self._fresh = self._fresh, []
        if not rows:
            return
        seconds = sum(row["seconds"] for row in rows)
        status: TrainingStatus = {
            "epochs": rows[-1]["epoch"] + rows[-1]["share"],
            "phase": rows[-1]["phase"],
            "step": progress.steps_done,
            "loss": sum(row["loss"] for row in rows) / len(rows),
            "cubes_per_s": sum(row["cubes"] for row in rows) / seconds,
            "gap": sum(row["waited"] for row in rows) / seconds,
            "memory_gib": _memory_gib(),
            "lost": self._lost,
        }
        self._do(lambda: write_json(self._folder / STATUS_FILE, status))
        self._do(lambda: self._track([(row["step"], finite_figures(row, "step/")) for row in rows]))

    def _track(self, figures: Sequence[tuple[int, dict[str, float]]]) -> None:
        for tracker in list(self._trackers):
            try:
                for step, values in figures:
                    tracker.log(values, step)
            except Exception as error:  # a server that is gone must not end training
                self._trackers.remove(tracker)
                self._lost.append(f"{type(tracker).__name__} is left out from now on: {error}")

    def _close_trackers(self) -> None:
        for tracker in self._trackers:
            with suppress(Exception):
                tracker.close()

    def _do(self, job: Callable[[], None]) -> None:
        self._raise()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is None:
                try:
                    job()
                except BaseException as error:  # raised in training
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _memory_gib() -> float:
    """Peak memory so far, on the GPU if there is one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_memory_gib()
