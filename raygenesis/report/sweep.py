"""The section of a sweep: its table, where the best points lie, what each setting does, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygenesis.report.artifact import ArtifactView
from raygenesis.report.page import SYMBOLS
from raygenesis.sweeps.objectives import OBJECTIVES
from raygenesis.sweeps.records import FAILED, TrialRecord, read_trials
from raygenesis.sweeps.table import costs, rank_points, seeds_note
from raygenesis.text import charts
from raygenesis.text.charts import Chart, Labels
from raygenesis.text.tables import Rows, cell
from raygenesis.workspace.manifest import SweepCost, SweepManifest, Tree

MOST_CATEGORIES = 8  # of a setting with more values, each value is a place on a scale
LEFT_OUT = ("seeds", "chance", "status", "cpu_seconds", "gpu_seconds")


@dataclass(frozen=True)
class SweepSection:
    """table: a row a point, the best first. objective: in words. failures: points that failed, with the reason."""

    table: Rows
    objective: str
    charts: Sequence[Chart]
    cost: SweepCost
    note: str
    failures: Sequence[str]


def sweep_section(view: ArtifactView[SweepManifest]) -> SweepSection:
    """Ranked points (so far, of a sweep that is not finished), parallel coordinates, a panel a setting, and costs."""
    chosen, space = view.settings["sweep"], view.settings["space"]
    objective = chosen["objective"]
    trials = read_trials(view.folder)
    table = (view.manifest and view.manifest.table) or [point.flat() for point in rank_points(trials, objective)]
    varied = {
        key.removeprefix("pretraining."): axis for key, axis in space.items() if isinstance(axis, dict) or len(axis) > 1
    }
    fixed = {key.removeprefix("pretraining.") for key in space} - varied.keys()
    left_out = {*LEFT_OUT, *fixed, *(("spread",) if chosen["num_seeds"] == 1 else ())}
    columns = [name for name in (table[0] if table else ()) if name not in left_out]
    return SweepSection(
        table=[{name: row.get(name) for name in columns} for row in table],
        objective=OBJECTIVES[objective].words,
        charts=_charts(f"Sweep {view.folder.name}", table, varied, objective),
        cost=costs(trials),
        note=seeds_note([row["spread"] for row in table], chosen["num_seeds"]) if table else "",
        failures=[_failure(trial, varied) for trial in trials if trial.status == FAILED],
    )


def _charts(title: str, table: Sequence[Tree], varied: Mapping[str, Any], objective: str) -> list[Chart]:
    ended = [row for row in table if row["status"] != FAILED and row[objective] is not None]
    if not ended or not varied:
        return []
    marginals = (_marginal(title, ended, key, axis, objective) for key, axis in varied.items())
    return [_parallel(title, ended, varied, objective), *marginals]


def _failure(trial: TrialRecord, varied: Mapping[str, Any]) -> str:
    point = ", ".join(f"{SYMBOLS.get(key, key)} {trial.point[key]}" for key in varied)
    return f"{point}, seed {trial.seed}: {trial.reason}"


def _marginal(title: str, rows: Sequence[Tree], key: str, axis: Any, objective: str) -> Chart:
    name = SYMBOLS.get(key, key.replace("_", " "))
    labels, values = Labels(f"{title} by {name}", name, objective), _values(rows, key, axis)
    if isinstance(axis, dict) and len(values) > MOST_CATEGORIES:
        points = [(row[key], row[objective]) for row in rows]
        return charts.marginal(labels, points, log=axis["log"])
    dots = {cell(value): [row[objective] for row in rows if row[key] == value] for value in values}
    is_joined = all(isinstance(value, int | float) for value in values)
    return charts.strip(labels, dots, is_joined=is_joined, dot="point")


def _parallel(title: str, rows: Sequence[Tree], varied: Mapping[str, Any], objective: str) -> Chart:
    """The objective's axis points upwards to better values."""
    axes, columns = {}, []
    for key, axis in varied.items():
        values = _values(rows, key, axis)
        if isinstance(axis, dict):
            scale = np.log if axis["log"] else np.asarray
            places = _fractions(scale([row[key] for row in rows]), scale([axis["low"], axis["high"]]))
            ticks = [(0.0, cell(axis["low"])), (1.0, cell(axis["high"]))]
        else:
            height = {value: number / max(1, len(values) - 1) for number, value in enumerate(values)}
            places, ticks = [height[row[key]] for row in rows], [(height[value], cell(value)) for value in values]
        axes[SYMBOLS.get(key, key.replace("_", " "))] = ticks
        columns.append(places)
    scores = np.array([row[objective] for row in rows], float)
    worst, best = (scores.min(), scores.max())[:: 1 if OBJECTIVES[objective].mode == "max" else -1]
    axes[objective] = [(0.0, cell(float(worst))), (1.0, cell(float(best)))]
    columns.append(_fractions(scores, np.array([worst, best])))
    return charts.parallel(title, axes, np.transpose(columns).tolist(), 0)


def _fractions(values: Any, ends: Any) -> list[float]:
    """Where values lie between two ends, 0 to 1."""
    span = ends[1] - ends[0]
    return ((np.asarray(values) - ends[0]) / span).tolist() if span else [1.0] * len(values)


def _values(rows: Sequence[Tree], key: str, axis: Any) -> list[Any]:
    """The values that points have, those of choices in the order of the space unless they are numbers."""
    found = {row[key] for row in rows}
    if isinstance(axis, dict) or all(isinstance(value, int | float) for value in found):
        return sorted(found)
    return [value for value in axis if value in found]
