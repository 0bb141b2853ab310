"""The sections of target tasks and of comparisons: tables with marks, every trial, an example, what semantics add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from raygenesis.report import figures
from raygenesis.report.figures import Chart
from raygenesis.report.sections import Made, Row
from raygenesis.transfer.metrics import PRIMARY
from raygenesis.transfer.table import LEGEND
from raygenesis.workspace import read_json


def transfer(artifact: Made) -> dict[str, Any]:
    """The table of initialisations, every trial (so far, of a target that is not finished) and an example."""
    trials = [read_json(path) for path in sorted(artifact.folder.glob("trial-*.json"))]
    if extent := artifact.record.get("extent"):  # what was compared before may still be there
        trials = [
            trial for trial in trials
            if trial["initialisation"] in extent["initialisations"] and trial["labelled"] in extent["num_labelled"]
        ]  # fmt: skip
    image = artifact.folder / "example.npz"
    spacing = artifact.record.get("spacing_mm") or (1, 1)
    return {
        "name": artifact.folder.name, "artifact": artifact, "table": shown(artifact.record.get("shown", [])),
        "charts": _strips(trials), "pictures": figures.example(image, spacing) if image.is_file() else [],
        "legend": LEGEND.replace("**", ""), "task": artifact.record.get("task"),
    }  # fmt: skip


def comparison(artifact: Made) -> dict[str, Any]:
    """Initialisations by targets, what semantics add to each restoration task, and the paper's figures beside ours."""
    record = artifact.record
    return {
        "name": artifact.folder.name, "artifact": artifact, "overview": shown(record.get("overview", [])),
        "cubes": record.get("cubes", {}), "semantics": record.get("semantics", []), "paper": record.get("paper", {}),
        "legend": LEGEND.replace("**", ""),
    }  # fmt: skip


def shown(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with what is best in bold."""
    return [{column: _bold(text) for column, text in row.items()} for row in rows]


def _bold(text: Any) -> Any:
    if isinstance(text, str) and text.startswith("**"):
        return Markup("<strong>{}</strong>").format(text.strip("*"))
    return text


def _strips(trials: Sequence[Row]) -> list[Chart]:
    """A chart for each number of labelled subjects: a dot a trial."""
    charts = []
    for labelled in dict.fromkeys(trial["labelled"] for trial in trials):
        dots: dict[str, list[float]] = {}
        for trial in trials:
            if trial["labelled"] == labelled:
                metric = next(iter(trial["figures"]))
                dots.setdefault(trial["initialisation"], []).append(trial["figures"][metric])
        words = next(primary.words for primary in PRIMARY.values() if primary.name == metric)
        charts.append(figures.strip(f"Trials with {labelled} labelled subjects", "initialisation", words, dots))
    return charts
