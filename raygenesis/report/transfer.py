"""The sections of target tasks and of comparisons: tables with marks, every trial, an example, what semantics add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raygenesis.report import charts, galleries
from raygenesis.report.artifact import ArtifactView, Row, guarded
from raygenesis.report.charts import Chart
from raygenesis.studies.semantics import SEMANTICS_NOTE
from raygenesis.studies.tables import with_titles
from raygenesis.transfer.metrics import TITLES
from raygenesis.transfer.results import Trials, results_in
from raygenesis.transfer.split import count_of
from raygenesis.transfer.table import LEGEND
from raygenesis.workspace.files import read_json

MARKS = LEGEND.replace("**Best**", "Bold: best")
SIGNIFICANT = 0.05


def transfer(artifact: ArtifactView) -> dict[str, Any]:
    """The table of initialisations, every trial (so far, of a target that is not finished) and an example."""
    return {
        "artifact": artifact, "table": shown(artifact.record.get("shown", [])),
        "charts": _strips(artifact),
        "example": guarded(_example, artifact),
        "task": artifact.record.get("task"),
    }  # fmt: skip


def _example(artifact: ArtifactView) -> dict[str, Any]:
    title, image = f"Target {artifact.folder.name} example", artifact.folder / "example.npz"
    if not image.is_file():
        return {"gallery": None}
    record = artifact.record
    spacing, names = record.get("spacing_mm") or (1, 1), record.get("classes", [])
    return {"gallery": galleries.example(image, spacing, title, _most_labelled(record), names)}


def _most_labelled(record: Row) -> int | str | None:
    """With how many labelled subjects the example's networks learnt: the most of those that were asked for."""
    pool = record.get("counts", {}).get("pool_subjects")
    given = record.get("extent", {}).get("num_labelled", [])
    return max(given, key=lambda labelled: count_of(labelled, pool)) if given and pool else None


def comparison(artifact: ArtifactView) -> dict[str, Any]:
    """Initialisations by targets, what semantics add to each restoration task, and the paper's figures beside ours."""
    record = artifact.record
    return {
        "artifact": artifact, "overview": shown(record.get("overview", [])),
        "cubes": record.get("cubes", {}), "semantics": with_titles(record.get("semantics", [])),
        "paper": record.get("paper", {}), "charts": _with_and_without(artifact), "note": SEMANTICS_NOTE,
    }  # fmt: skip


def shown(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with what is best in bold."""
    return [{column: _bold(text) for column, text in row.items()} for row in rows]


def _bold(text: Any) -> Any:
    if isinstance(text, str) and text.startswith("**"):
        return Markup("<strong>{}</strong>").format(text.strip("*"))
    return text


def _dots(starts: Mapping[str, Trials]) -> dict[str, list[float]]:
    """The primary figure, the first, of each initialisation's trials."""
    return {start: [next(iter(trial.figures.values())) for trial in trials] for start, trials in starts.items()}


def _strips(artifact: ArtifactView) -> list[Chart]:
    """A chart for each number of labelled subjects: a dot a trial."""
    drawn = []
    for labelled, starts in results_in(artifact.folder, artifact.record.get("extent")).items():
        metric = next(iter(next(iter(starts.values()))[0].figures))
        title, of = f"Trials with {labelled} labelled subjects", f"target {artifact.folder.name}"
        drawn.append(charts.strip(title, "initialisation", TITLES[metric], _dots(starts), of=of))
    return drawn


def _with_and_without(artifact: ArtifactView) -> list[Chart]:
    """What semantics add, a chart for each target and number of labelled subjects (the paper's Fig. 2)."""
    drawn = []
    rows = artifact.record.get("semantics", [])
    for target, labelled in dict.fromkeys((row["target"], row["labelled"]) for row in rows):
        folder = artifact.folder.parent.parent / "transfer" / f"{artifact.folder.name}-{target}"
        manifest = read_json(folder / "manifest.json") or {}
        dots = _dots(results_in(folder, manifest.get("extent")).get(labelled, {}))
        told = {
            row["without"]: (dots[row["without"]], dots[row["with"]], _gain(row))
            for row in rows
            if (row["target"], row["labelled"]) == (target, labelled) and {row["without"], row["with"]} <= dots.keys()
        }
        if told:
            title = f"{target}, {labelled} labelled"
            metric = next(row["metric"] for row in rows if row["target"] == target)
            drawn.append(charts.pairs(title, TITLES[metric], f"semantics in {artifact.folder.name}", told))
    return drawn


def _gain(row: Row) -> str:
    """The gain, with a star where trials tell it from none."""
    return f"{row['gain']:+.3f}{' *' if (row['p trials'] or 1) < SIGNIFICANT else ''}"
