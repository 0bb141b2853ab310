"""Progress of long work: one live line at a terminal, plain lines in a job log; and each stage's summary."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raygenesis.text.names import printable

PLAIN_INTERVAL_S, TENTH_INTERVAL_S = 60.0, 15.0  # between the lines of a job log
MAX_KEPT = 100  # stages, and lines, for a job's record


class Stopwatch:
    """Measures the seconds since it was created."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """How far a stage is: units done of `total`, units a second, seconds until the last was done, the newest note."""

    stage: str
    unit: str
    done: float
    total: int
    rate: float
    seconds: float
    note: str


class Ticker:
    """Counts finished units, `done` of them before it was made, and shows rate and time left."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None, done: float = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._bar = bar
        self._task = None
        if bar is not None:
            self._task = bar.add_task(title, total=total, completed=done, note="")  # type: ignore[arg-type] # shows fractions
        self._begin = self._shown = time.perf_counter()
        self._before = self._done = done
        self._note = ""
        self._now = self._begin

    def advance(self, count: float = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them."""
        self._done += count
        self._note = note = printable(note)
        self._now = now = time.perf_counter()
        rate = self._rate()
        speed = f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s for one of the {self.unit}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=f"{speed} {escape(note)}")
        elif self._is_due(now, count):
            self._shown = now
            left = (self.total - self._done) / max(rate, 1e-9)
            done = self._done if isinstance(self._done, int) else f"{self._done:.1f}"
            print(f"{self.title}: {done}/{self.total}, {speed}, {left:.0f} s left {note}".rstrip(), flush=True)

    def _is_due(self, now: float, count: float) -> bool:
        """Whether a plain line is: at the end, at a tenth soon after the one before, else after a minute."""
        if self._done == self.total:
            return True
        total = max(self.total, 1)
        is_tenth = self._done * 10 // total > (self._done - count) * 10 // total
        return now - self._shown >= (TENTH_INTERVAL_S if is_tenth else PLAIN_INTERVAL_S)

    def progress(self) -> StageProgress:
        return StageProgress(
            stage=self.title, unit=self.unit, done=float(self._done), total=int(self.total), rate=float(self._rate()),
            seconds=self._now - self._begin, note=self._note,
        )  # fmt: skip

    def _rate(self) -> float:
        return (self._done - self._before) / max(self._now - self._begin, 1e-9)


_tickers: deque[Ticker] = deque(maxlen=MAX_KEPT)
_lines: deque[str] = deque(maxlen=MAX_KEPT)


def tickers() -> list[Ticker]:
    """The progress of this process's stages, oldest first."""
    return list(_tickers)


def lines() -> list[str]:
    """The lines that this process has printed about its stages, oldest first."""
    return list(_lines)


@contextmanager
def progress(title: str, total: int, unit: str, done: float = 0) -> Iterator[Ticker]:
    """Show progress of `total` units called `unit` (plural), `done` of which are done already."""
    if sys.stdout.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(), transient=True) as bar:
            yield _kept(Ticker(title, total, unit, bar, done))
    else:
        yield _kept(Ticker(title, total, unit, None, done))


def _kept(ticker: Ticker) -> Ticker:
    _tickers.append(ticker)
    return ticker


def say(stage: str, text: str) -> None:
    """Print one line about a stage."""
    line = printable(f"{stage}: {text}")
    _lines.append(line)
    print(line, flush=True)
