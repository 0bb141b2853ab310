"""The section of a sweep: its table, where the best points lie, what each setting does, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raygenesis.report import charts
from raygenesis.report.artifact import ArtifactView, Row
from raygenesis.report.charts import Chart
from raygenesis.report.page import SYMBOLS
from raygenesis.sweeps.objectives import OBJECTIVES
from raygenesis.sweeps.table import costs, rank_points, seeds_note
from raygenesis.sweeps.trial import FAILED
from raygenesis.text.tables import cell
from raygenesis.workspace.files import Place, read_json
from raygenesis.workspace.manifest import SweepManifest

MOST_CATEGORIES = 8  # of a setting with more values, each value is a place on a scale
LEFT_OUT = ("seeds", "chance", "status", "cpu_seconds", "gpu_seconds")


def sweep(artifact: ArtifactView[SweepManifest]) -> dict[str, Any]:
    """Ranked points (so far, of a sweep that is not finished), parallel coordinates, a panel a setting, and costs."""
    chosen, space = (artifact.settings[key] for key in ("sweep", "space"))
    objective = chosen["objective"]
    paths: list[Place] = sorted(artifact.folder.glob("trial-*.json"))
    trials = [trial for path in paths if (trial := read_json(path)) is not None]
    table = (artifact.manifest and artifact.manifest.table) or rank_points(trials, objective)
    varied = {
        key.removeprefix("pretraining."): axis for key, axis in space.items() if isinstance(axis, dict) or len(axis) > 1
    }
    ended = [row for row in table if row["status"] != FAILED and row[objective] is not None]
    drawn = []
    if ended and varied:
        title = f"Sweep {artifact.folder.name}"
        marginals = (_marginal(title, ended, key, axis, objective) for key, axis in varied.items())
        drawn = [_parallel(title, ended, varied, objective), *marginals]
    shown = [name for name in (table[0] if table else ()) if name not in LEFT_OUT]
    if chosen["num_seeds"] == 1 and table:
        shown.remove("spread")
    fixed = {key.removeprefix("pretraining.") for key in space} - varied.keys()
    return {
        "artifact": artifact, "charts": drawn, "cost": costs(trials),
        "table": [{name: row.get(name) for name in shown if name not in fixed} for row in table],
        "words": OBJECTIVES[objective].words, "note": seeds_note(table, chosen["num_seeds"]) if table else "",
        "failed": [_failure(trial, varied) for trial in trials if trial["status"] == FAILED],
    }  # fmt: skip


def _failure(trial: Row, varied: Mapping[str, Any]) -> str:
    told = ", ".join(f"{SYMBOLS.get(key, key)} {trial['point'][key]}" for key in varied)
    return f"{told}, seed {trial['seed']}: {trial['reason']}"


def _marginal(title: str, rows: Sequence[Row], key: str, axis: Any, objective: str) -> Chart:
    name = SYMBOLS.get(key, key.replace("_", " "))
    values = _values(rows, key, axis)
    if isinstance(axis, dict) and len(values) > MOST_CATEGORIES:
        points = [(row[key], row[objective]) for row in rows]
        return charts.marginal(f"{title} by {name}", name, objective, points, log=axis["log"])
    dots = {cell(value): [row[objective] for row in rows if row[key] == value] for value in values}
    joined = all(isinstance(value, int | float) for value in values)
    return charts.strip(f"{title} by {name}", name, objective, dots, joined=joined, dot="point")


def _parallel(title: str, rows: Sequence[Row], varied: Mapping[str, Any], objective: str) -> Chart:
    """The objective's axis points upwards to better values."""
    axes, columns = {}, []
    for key, axis in varied.items():
        values = _values(rows, key, axis)
        if isinstance(axis, dict):
            scale = np.log if axis["log"] else np.asarray
            places = _placed(scale([row[key] for row in rows]), scale([axis["low"], axis["high"]]))
            ticks = [(0.0, cell(axis["low"])), (1.0, cell(axis["high"]))]
        else:
            height = {value: number / max(1, len(values) - 1) for number, value in enumerate(values)}
            places, ticks = [height[row[key]] for row in rows], [(height[value], cell(value)) for value in values]
        axes[SYMBOLS.get(key, key.replace("_", " "))] = ticks
        columns.append(places)
    scores = np.array([row[objective] for row in rows], float)
    worst, best = (scores.min(), scores.max())[:: 1 if OBJECTIVES[objective].mode == "max" else -1]
    axes[objective] = [(0.0, cell(float(worst))), (1.0, cell(float(best)))]
    columns.append(_placed(scores, np.array([worst, best])))
    return charts.parallel(title, axes, np.transpose(columns).tolist(), 0)


def _placed(values: Any, ends: Any) -> list[float]:
    """Where values lie between two ends, 0 to 1."""
    span = ends[1] - ends[0]
    return ((np.asarray(values) - ends[0]) / span).tolist() if span else [1.0] * len(values)


def _values(rows: Sequence[Row], key: str, axis: Any) -> list[Any]:
    """The values that points have, those of choices in the order of the space unless they are numbers."""
    there = {row[key] for row in rows}
    if isinstance(axis, dict) or all(isinstance(value, int | float) for value in there):
        return sorted(there)
    return [value for value in axis if value in there]
