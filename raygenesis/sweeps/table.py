"""The table of a sweep: a row a point, its seeds together, ranked; and what the trials cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raygenesis.sweeps.objectives import OBJECTIVES
from raygenesis.sweeps.records import FAILED, STOPPED, WHOLE, TrialRecord
from raygenesis.sweeps.space import Point
from raygenesis.workspace.manifest import SweepCost, Tree

MEASURES = ("retrieval", "rankme", "target", "loss", "accuracy", "chance", "restoration")


@dataclass(frozen=True, kw_only=True)
class RankedPoint:
    """A point's trials together.

    rank: from 1, None if all failed. value, spread: mean and standard deviation over seeds of the objective; None where
    there is none. seeds: that did not fail. measures: means of the others, by name. epochs: mean. cost: sums of seconds
    over all trials. note: why trials failed or were stopped.
    """

    rank: int | None
    point: Point
    objective: str
    value: float | None
    spread: float | None
    seeds: int
    status: str
    measures: Mapping[str, float | None]
    epochs: float | None
    patterns: int | None
    cost: SweepCost
    note: str

    def flat(self) -> Tree:
        """The row by its columns."""
        return {
            "rank": self.rank, **self.point, self.objective: self.value, "spread": self.spread, "seeds": self.seeds,
            "status": self.status, **self.measures, "epochs": self.epochs, "patterns": self.patterns,
            "seconds": self.cost.seconds, "cpu_seconds": self.cost.cpu_seconds, "gpu_seconds": self.cost.gpu_seconds,
            "note": self.note,
        }  # fmt: skip


def rank_points(trials: Sequence[TrialRecord], objective: str) -> list[RankedPoint]:
    """Points, best first: those trained to the end, then those stopped early, then those that failed.

    A point's measures are means over its seeds that did not fail, `spread` is their standard deviation in the
    objective (None of one seed), its costs are sums over all of them.
    """
    points: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        points.setdefault(repr(sorted(trial.point.items())), []).append(trial)
    rows = [_point(members, objective) for members in points.values()]
    sign = -1 if OBJECTIVES[objective].mode == "max" else 1
    order = (WHOLE, STOPPED, FAILED)

    def place(row: RankedPoint) -> tuple[int, bool, float]:
        value = row.value
        if value is None:  # of a point that was stopped before its target was tried
            value = row.measures.get(OBJECTIVES[objective].proxy)
        return order.index(row.status), value is None, sign * (value or 0.0)

    rows.sort(key=place)
    return [row if row.status == FAILED else replace(row, rank=number) for number, row in enumerate(rows, 1)]


def _point(trials: Sequence[TrialRecord], objective: str) -> RankedPoint:
    ended = [trial for trial in trials if trial.status != FAILED]
    status = FAILED
    if ended:
        status = WHOLE if all(trial.status == WHOLE for trial in ended) else STOPPED
    values = {name: [value for trial in ended if (value := trial.measure(name)) is not None] for name in MEASURES}
    scores = values.pop(objective)
    epochs = [trial.epochs for trial in ended if trial.epochs is not None]
    return RankedPoint(
        rank=None, point=trials[0].point, objective=objective, value=_mean(scores),
        spread=float(np.std(scores, ddof=1)) if scores[1:] else None, seeds=len(ended), status=status,
        measures={name: _mean(those) for name, those in values.items() if those},
        epochs=round(float(np.mean(epochs)), 1) if epochs else None, patterns=ended[0].patterns if ended else None,
        cost=costs(trials), note="; ".join(dict.fromkeys(trial.reason for trial in trials if trial.reason)),
    )  # fmt: skip


def costs(trials: Iterable[TrialRecord]) -> SweepCost:
    """Seconds of all trials, and of them of those that were stopped and that failed."""
    trials = list(trials)

    def total(name: str, *statuses: str) -> float:
        return round(sum(trial.measure(name) or 0.0 for trial in trials if not statuses or trial.status in statuses), 2)

    return SweepCost(
        seconds=total("seconds"), cpu_seconds=total("cpu_seconds"), gpu_seconds=total("gpu_seconds"),
        stopped_seconds=total("seconds", STOPPED), failed_seconds=total("seconds", FAILED),
    )  # fmt: skip


def seeds_note(spreads: Sequence[float | None], num_seeds: int) -> str:
    """What the differences between points may be worth; spreads: of each point over its seeds."""
    if num_seeds == 1:
        return (
            "Each point was trained with one seed: differences smaller than the spread between seeds, which is not "
            "known here, mean nothing. sweep.num_seeds=3 measures it."
        )
    known = [spread for spread in spreads if spread is not None]
    if not known:
        return f"Each point was to be trained with {num_seeds} seeds, and no point was twice to the end."
    typical = float(np.sqrt(np.mean(np.square(known))))
    return (
        f"Each point was trained with {num_seeds} seeds; the standard deviation between seeds is {typical:.3g}. "
        f"Differences between points of less than about {2 * typical * (2 / num_seeds) ** 0.5:.2g} (two standard "
        "errors) mean nothing."
    )


def trial_rows(trials: Sequence[TrialRecord]) -> list[Tree]:
    """A flat row a trial, for `trials.csv`."""
    left_out = ("point", "traceback")
    return [{**trial.point, **{k: v for k, v in trial.tree().items() if k not in left_out}} for trial in trials]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
