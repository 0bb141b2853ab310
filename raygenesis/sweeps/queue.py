"""The trials of a sweep in their order, and what became of those that have ended: a file each in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raygenesis.sweeps.objectives import OBJECTIVES
from raygenesis.sweeps.search import Next, Search, TrialOutcome
from raygenesis.sweeps.space import Point
from raygenesis.sweeps.trial import FAILED, WHOLE, SweepTrial
from raygenesis.workspace.files import Place, read_json, write_json

Row = dict[str, Any]


class Queue:
    """The trials in the order of the search, and the rows of those that have ended.

    What an earlier call finished is not trained again but told to the search, which therefore proposes what it
    proposed then. What failed then is told as failed and tried again at the end.
    """

    def __init__(self, search: Search, folder: Place, seeds: Sequence[int], objective: str) -> None:
        self.folder = folder
        self.points: list[Point] = []
        self.rows: dict[str, Row] = {}
        self.known = 0
        self._search, self._seeds, self._objective = search, seeds, OBJECTIVES[objective]
        self._waiting: list[SweepTrial] = []
        self._again: list[SweepTrial] = []
        self._retried: set[str] = set()

    def next(self) -> SweepTrial | Next:
        """The next trial to be run."""
        while True:
            while self._waiting:
                trial = self._waiting.pop(0)
                row = None if trial.key in self._retried else read_json(trial.path(self.folder))
                if row is None:
                    return trial
                self.rows[trial.key] = row
                self.known += row["status"] != FAILED
                if row["status"] == FAILED:
                    self._again.append(trial)
            point = self._search.next(self._outcome)
            if point is Next.WAIT or (point is Next.DONE and not self._again):
                return point
            if point is Next.DONE:
                self._waiting, self._again = self._again, []
                self._retried |= {trial.key for trial in self._waiting}
            else:
                self.points.append(point)
                self._waiting = [SweepTrial(point, seed) for seed in self._seeds]

    def put_back(self, trial: SweepTrial) -> None:
        self._waiting.insert(0, trial)

    def end(self, trial: SweepTrial, status: str, told: Mapping[str, Any]) -> Row:
        """Keep what became of a trial, in its file."""
        row = {"point": trial.point, "seed": trial.seed, "status": status, **told}
        if trial.key in self._retried:
            row["retried"] = True
        write_json(trial.path(self.folder), row)
        self.rows[trial.key] = row
        return row

    def _outcome(self, point: Point) -> TrialOutcome | None:
        """Of all seeds together. A trial that was tried again counts as failed, as it did when it was first told."""
        keys = [SweepTrial(point, seed).key for seed in self._seeds]
        if not self.rows.keys() >= set(keys):
            return None
        rows = [self.rows[key] for key in keys]
        ended = [row for row in rows if row["status"] != FAILED and not row.get("retried")]
        whole = all(row["status"] == WHOLE for row in ended)
        key = self._objective.name if whole else self._objective.proxy
        values = [row[key] for row in ended if row.get(key) is not None]
        if not values:
            return TrialOutcome(None)
        return TrialOutcome(sum(values) / len(values), whole, min(row["epochs"] for row in ended))
