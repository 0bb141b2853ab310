"""What became of the trials of a sweep: a record each, in a file of its own in the sweep's folder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from raygenesis.sweeps.space import Point
from raygenesis.workspace.files import Place, write_json
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.records import read_record

# How a trial ended, or that it has not: trained to the end, stopped early, failed.
WHOLE, STOPPED, FAILED, RUNNING = "whole", "stopped", "failed", "running"

# Fields that a record's file has only if they say something.
OPTIONAL = ("target", "reason", "traceback", "retried")


@dataclass(frozen=True)
class SweepTrial:
    """One training of a point, its random numbers drawn from a seed."""

    point: Point
    seed: int

    @property
    def key(self) -> str:
        return digest({"point": self.point, "seed": self.seed})

    def path(self, folder: Place) -> Place:
        return folder / f"trial-{self.key}.json"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What became of a trial.

    retrieval, rankme, target: what its encoder is worth (`sweeps.objectives`). loss, accuracy, restoration: of the best
    epoch, on held-out patterns; chance: the accuracy of answers at random. patterns: learnt from. reason: why it failed
    or was stopped. retried: it had failed before. None: not known, or the task has no such part.
    """

    point: Point
    seed: int
    status: str
    retrieval: float | None = None
    rankme: float | None = None
    target: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    chance: float | None = None
    restoration: float | None = None
    patterns: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    gpu_seconds: float | None = None
    reason: str | None = None
    traceback: str | None = None
    retried: bool = False

    @property
    def trial(self) -> SweepTrial:
        return SweepTrial(self.point, self.seed)

    def measure(self, name: str) -> float | None:
        """A figure by its name."""
        return getattr(self, name)

    def tree(self) -> dict[str, Any]:
        """The record as its file has it: JSON knows no numbers that are not finite."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
            if value or not (key in OPTIONAL or (value is None and self.status == FAILED))
        }


def write_trial(folder: Place, record: TrialRecord) -> None:
    write_json(record.trial.path(folder), record.tree())


def read_trials(folder: Place) -> list[TrialRecord]:
    """The records of a sweep's trials that have ended, in the order of their files' names.

    Raises WorkspaceError if one is damaged.
    """
    paths: list[Place] = sorted(folder.glob("trial-*.json"), key=lambda path: path.name)
    return [record for path in paths if (record := read_record(path, TrialRecord)) is not None]
