"""What the first worker leaves in a run's folder while it trains, written by a thread: training does not wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from raygenesis.training.checkpoints import copied, save_checkpoint
from raygenesis.training.experiment import Row
from raygenesis.training.loop import Progress
from raygenesis.training.metrics import write_metrics, write_steps
from raygenesis.training.trackers import Tracker, finite
from raygenesis.workspace.files import Place, write_json
from raygenesis.workspace.hardware import peak_memory_gib

STATUS_SECONDS = 1.0
CHECKPOINTS, STATUS_FILE = "checkpoints", "progress.json"


class Recorder:
    """Progress every second, a checkpoint every `checkpoint_seconds` and after the last epoch, tables with each.

    The tables are written before the checkpoint that belongs to them: they never lag behind where training would go
    on. Errors of the thread are raised in training, at the next step; a tracker that fails is left out from then on,
    and `progress.json` says why.
    """

    def __init__(self, folder: Place, checkpoint_seconds: float, trackers: Sequence[Tracker] = ()) -> None:
        self._folder, self._interval, self._trackers = folder, checkpoint_seconds, list(trackers)
        self._lost: list[str] = []  # why trackers were left out
        self._rows: list[Row] = []  # since the last checkpoint
        self._fresh: list[Row] = []  # since the last status
        self._saved = self._told = time.monotonic()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._saving = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def on_step(self, now: Progress, row: Row) -> None:
        self._rows.append(row)
        self._fresh.append(row)
        clock = time.monotonic()
        if clock - self._told >= STATUS_SECONDS:
            self._told = clock
            self._tell(now)
        self._save_when_due(now)

    def on_epoch(self, now: Progress) -> None:
        """An epoch has ended, with its held-out figures."""
        row = dict(now.history[-1])
        self._tell(now)
        history = [dict(past) for past in now.history]
        self._do(lambda: write_metrics(self._folder, history))
        # At its last step, as trackers forget what is told of the step at which training goes on.
        last = now.steps_done - 1
        self._do(lambda: self._track([(last, finite(row, "epoch/"))]))
        self._save_when_due(now)

    def close(self, now: Progress | None) -> None:
        """Write the last checkpoint, unless training failed (None), and end the thread."""
        if now is not None:
            self._save(now)
        self._jobs.put(self._close_trackers)
        self._jobs.put(None)
        self._thread.join()
        if now is not None:
            self._raise()

    def _save_when_due(self, now: Progress) -> None:
        """Not while the one before is being written: two copies of a state at a time are enough."""
        if not self._saving and time.monotonic() - self._saved >= self._interval:
            self._save(now)

    def _save(self, now: Progress) -> None:
        self._saving, self._saved = True, time.monotonic()
        state, rows, self._rows = copied(now.state()), self._rows, []

        def write() -> None:
            write_steps(self._folder, rows)
            write_metrics(self._folder, state["history"])
            save_checkpoint(self._folder / CHECKPOINTS, state["steps_done"], state)
            self._saving = False

        self._do(write)

    def _tell(self, now: Progress) -> None:
        rows, self._fresh = self._fresh, []
        if not rows:
            return
        seconds = sum(row["seconds"] for row in rows)
        status = {
            "epochs": rows[-1]["epoch"] + rows[-1]["share"],
            "phase": rows[-1]["phase"],
            "step": now.steps_done,
            "loss": sum(row["loss"] for row in rows) / len(rows),
            "cubes_per_s": sum(row["cubes"] for row in rows) / seconds,
            "gap": sum(row["waited"] for row in rows) / seconds,
            "memory_gib": _memory_gib(),
            "lost": self._lost,
        }
        self._do(lambda: write_json(self._folder / STATUS_FILE, status))
        self._do(lambda: self._track([(row["step"], finite(row, "step/")) for row in rows]))

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
    """The most that was held so far, on the GPU if there is one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_memory_gib()
