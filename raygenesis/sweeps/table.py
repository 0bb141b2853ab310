"""The table of a sweep: a row a point, its seeds together, ranked; and what the trials cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from raygenesis.sweeps.objectives import OBJECTIVES
from raygenesis.sweeps.trial import FAILED, STOPPED, WHOLE
from raygenesis.workspace.manifest import SweepCost

Row = dict[str, Any]

MEASURES = ("retrieval", "rankme", "target", "loss", "accuracy", "chance", "restoration")
COSTS = ("seconds", "cpu_seconds", "gpu_seconds")


def rank_points(trials: Sequence[Mapping[str, Any]], objective: str) -> list[Row]:
    """Points from trials' rows, best first: those trained to the end, then those stopped early, then those that failed.

    A point's measures are means over its seeds that did not fail, `spread` is their standard deviation in the
    objective (None of one seed), its costs are sums over all of them.
    """
    points: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        points.setdefault(repr(sorted(trial["point"].items())), []).append(trial)
    rows = [_point(members, objective) for members in points.values()]
    sign = -1 if OBJECTIVES[objective].mode == "max" else 1
    order = (WHOLE, STOPPED, FAILED)

    def place(row: Row) -> tuple[int, bool, float]:
        value = row[objective]
        if value is None:  # of a point that was stopped before its target was tried
            value = row.get(OBJECTIVES[objective].proxy)
        return order.index(row["status"]), value is None, sign * (value or 0.0)

    rows.sort(key=place)
    return [{"rank": number if row["status"] != FAILED else None, **row} for number, row in enumerate(rows, 1)]


def _point(trials: Sequence[Mapping[str, Any]], objective: str) -> Row:
    ended = [trial for trial in trials if trial["status"] != FAILED]
    status = FAILED
    if ended:
        status = WHOLE if all(trial["status"] == WHOLE for trial in ended) else STOPPED
    values = [trial[objective] for trial in ended if trial.get(objective) is not None]
    row = {
        **trials[0]["point"], objective: _mean(values), "spread": float(np.std(values, ddof=1)) if values[1:] else None,
        "seeds": len(ended), "status": status,
    }  # fmt: skip
    for name in MEASURES:
        if name != objective and any(trial.get(name) is not None for trial in ended):
            row[name] = _mean([trial[name] for trial in ended if trial.get(name) is not None])
    row["epochs"] = round(float(np.mean([trial["epochs"] for trial in ended])), 1) if ended else None
    row["patterns"] = ended[0]["patterns"] if ended else None
    row |= {name: round(sum(trial.get(name) or 0.0 for trial in trials), 2) for name in COSTS}
    reasons = dict.fromkeys(trial["reason"] for trial in trials if trial.get("reason"))
    return {**row, "note": "; ".join(reasons)}


def costs(trials: Iterable[Mapping[str, Any]]) -> SweepCost:
    """Seconds of all trials, and of them of those that were stopped and that failed."""
    trials = list(trials)
    total = {name: round(sum(trial.get(name) or 0.0 for trial in trials), 2) for name in COSTS}
    stopped, failed = (
        round(sum(trial.get("seconds") or 0.0 for trial in trials if trial["status"] == status), 2)
        for status in (STOPPED, FAILED)
    )
    return SweepCost(**total, stopped_seconds=stopped, failed_seconds=failed)


def seeds_note(table: Sequence[Mapping[str, Any]], num_seeds: int) -> str:
    """What the differences between points may be worth."""
    if num_seeds == 1:
        return (
            "Each point was trained with one seed: differences smaller than the spread between seeds, which is not "
            "known here, tell nothing. sweep.num_seeds=3 measures it."
        )
    spreads = [row["spread"] for row in table if row["spread"] is not None]
    if not spreads:
        return f"Each point was to be trained with {num_seeds} seeds, and no point was twice to the end."
    typical = float(np.sqrt(np.mean(np.square(spreads))))
    return (
        f"Each point was trained with {num_seeds} seeds; the standard deviation between seeds is {typical:.3g}. "
        f"Differences between points of less than about {2 * typical * (2 / num_seeds) ** 0.5:.2g} (two standard "
        "errors) tell nothing."
    )


def trial_rows(trials: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A flat row a trial, for `trials.csv`."""
    left_out = ("point", "traceback")
    return [
        {**trial["point"], **{key: value for key, value in trial.items() if key not in left_out}} for trial in trials
    ]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
