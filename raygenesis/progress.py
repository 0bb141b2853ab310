"""Progress of long work: one live line at a terminal, plain lines in a job log; and each stage's summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 5.0


class Ticker:
    """Counts finished units, `done` of them before it was made, and shows rate and time left."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None, done: float = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._bar = bar
        self._task = bar.add_task(title, total=total, completed=done, note="") if bar else None
        self._begin = self._shown = time.perf_counter()
        self._before = self._done = done

    def advance(self, count: float = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them."""
        self._done += count
        now = time.perf_counter()
        rate = (self._done - self._before) / max(now - self._begin, 1e-9)
        speed = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s for one of the {self.unit}"
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=f"{speed} {note}")
        elif now - self._shown >= PLAIN_INTERVAL_S or self._done == self.total:
            self._shown = now
            left = (self.total - self._done) / max(rate, 1e-9)
            done = self._done if isinstance(self._done, int) else f"{self._done:.1f}"
            print(f"{self.title}: {done}/{self.total}, {speed}, {left:.0f} s left {note}".rstrip(), flush=True)


@contextmanager
def progress(title: str, total: int, unit: str, done: float = 0) -> Iterator[Ticker]:
    """Show progress of `total` units called `unit` (plural), `done` of which are done already."""
    if sys.stdout.isatty():
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(), transient=True) as bar:
            yield Ticker(title, total, unit, bar, done)
    else:
        yield Ticker(title, total, unit, None, done)


def say(stage: str, text: str) -> None:
    """One plain line about a stage."""
    print(f"{stage}: {text}", flush=True)


def mib(num_bytes: float) -> str:
    """Bytes as text in MiB."""
    return f"{num_bytes / 2**20:.1f} MiB"
