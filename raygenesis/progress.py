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
    """Counts finished units and shows rate and time left."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._bar = bar
        self._task = bar.add_task(title, total=total, note="") if bar else None
        self._begin = self._shown = time.perf_counter()
        self._done = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them."""
        self._done += count
        now = time.perf_counter()
        rate = self._done / max(now - self._begin, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=f"{rate:.1f} {self.unit}/s {note}")
        elif now - self._shown >= PLAIN_INTERVAL_S or self._done == self.total:
            self._shown = now
            left = (self.total - self._done) / rate
            print(
                f"{self.title}: {self._done}/{self.total}, {rate:.1f} {self.unit}/s, {left:.0f} s left {note}".rstrip(),
                flush=True,
            )


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Ticker]:
    """Show progress of `total` units called `unit` (plural)."""
    if sys.stdout.isatty():
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(), transient=True) as bar:
            yield Ticker(title, total, unit, bar)
    else:
        yield Ticker(title, total, unit, None)


def say(stage: str, text: str) -> None:
    """One plain line about a stage."""
    print(f"{stage}: {text}", flush=True)


def mib(num_bytes: float) -> str:
    """Bytes as text in MiB."""
    return f"{num_bytes / 2**20:.1f} MiB"
