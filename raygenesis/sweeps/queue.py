"""The trials of a sweep in their order, and what became of those that have ended: a file each in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raygenesis.sweeps.objectives import OBJECTIVES
from raygenesis.sweeps.records import FAILED, WHOLE, SweepTrial, TrialRecord, write_trial
from raygenesis.sweeps.search import Next, Search, TrialOutcome
from raygenesis.sweeps.space import Point
from raygenesis.workspace.files import Place
from raygenesis.workspace.records import read_record


class Queue:
    """The trials in the order of the search, and the records of those that have ended.

    What an earlier call finished is not trained again but reported to the search, which therefore proposes what it
    proposed then. What failed then is reported as failed and tried again at the end.
    """

    def __init__(self, search: Search, folder: Place, seeds: Sequence[int], objective: str) -> None:
        self.folder, self.seeds = folder, seeds
        self.points: list[Point] = []
        self.records: dict[str, TrialRecord] = {}
        self.known = 0
        self._search, self._objective = search, OBJECTIVES[objective]
        self._waiting: list[SweepTrial] = []
        self._again: list[SweepTrial] = []
        self._retried: set[str] = set()

    def next(self) -> SweepTrial | Next:
        """The next trial to be run."""
        while True:
            while self._waiting:
                trial = self._waiting.pop(0)
                record = None if trial.key in self._retried else read_record(trial.path(self.folder), TrialRecord)
                if record is None:
                    return trial
                self.records[trial.key] = record
                self.known += record.status != FAILED
                if record.status == FAILED:
                    self._again.append(trial)
            point = self._search.next(self._outcome)
            if point is Next.WAIT or (point is Next.DONE and not self._again):
                return point
            if point is Next.DONE:
                self._waiting, self._again = self._again, []
                self._retried |= {trial.key for trial in self._waiting}
            else:
                self.points.append(point)
                self._waiting = [SweepTrial(point, seed) for seed in self.seeds]

    def put_back(self, trial: SweepTrial) -> None:
        self._waiting.insert(0, trial)

    def end(self, record: TrialRecord) -> TrialRecord:
        """Keep what became of a trial, in its file; returns the record as it is kept."""
        record = replace(record, retried=record.trial.key in self._retried)
        write_trial(self.folder, record)
        self.records[record.trial.key] = record
        return record

    def _outcome(self, point: Point) -> TrialOutcome | None:
        """Of all seeds together. A trial that was tried again counts as failed, as it did when it first ended."""
        keys = [SweepTrial(point, seed).key for seed in self.seeds]
        if not self.records.keys() >= set(keys):
            return None
        ended = [record for key in keys if (record := self.records[key]).status != FAILED and not record.retried]
        whole = all(record.status == WHOLE for record in ended)
        name = self._objective.name if whole else self._objective.proxy
        values = [value for record in ended if (value := record.measure(name)) is not None]
        if not values:
            return TrialOutcome(None)
        return TrialOutcome(sum(values) / len(values), whole, min(record.epochs or 0 for record in ended))
