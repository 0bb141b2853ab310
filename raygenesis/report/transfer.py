"""The sections of target tasks and of comparisons: tables with marks, every trial, an example, what semantics add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from raygenesis.files import Place, read_json
from raygenesis.report import charts, galleries
from raygenesis.report.charts import Chart
from raygenesis.report.sections import Made, Row
from raygenesis.transfer.metrics import PRIMARY
from raygenesis.transfer.table import LEGEND

MARKS = LEGEND.replace("**", "")  # what is bold in the table is bold on the page
SIGNIFICANT = 0.05


def transfer(artifact: Made) -> dict[str, Any]:
    """The table of initialisations, every trial (so far, of a target that is not finished) and an example."""
    name, image = artifact.folder.name, artifact.folder / "example.npz"
    spacing = artifact.record.get("spacing_mm") or (1, 1)
    return {
        "artifact": artifact, "table": shown(artifact.record.get("shown", [])),
        "charts": _strips(artifact),
        "gallery": galleries.example(image, spacing, f"Target {name} example") if image.is_file() else None,
        "task": artifact.record.get("task"),
    }  # fmt: skip


def comparison(artifact: Made) -> dict[str, Any]:
    """Initialisations by targets, what semantics add to each restoration task, and the paper's figures beside ours."""
    record = artifact.record
    return {
        "artifact": artifact, "overview": shown(record.get("overview", [])),
        "cubes": record.get("cubes", {}), "semantics": record.get("semantics", []), "paper": record.get("paper", {}),
        "charts": _with_and_without(artifact),
    }  # fmt: skip


def shown(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with what is best in bold."""
    return [{column: _bold(text) for column, text in row.items()} for row in rows]


def _bold(text: Any) -> Any:
    if isinstance(text, str) and text.startswith("**"):
        return Markup("<strong>{}</strong>").format(text.strip("*"))
    return text


def _trials(folder: Place, record: Row) -> dict[Any, dict[str, list[float]]]:
    """The primary figure of each trial, by the number of labelled subjects and by initialisation, in their order."""
    paths: list[Place] = sorted(folder.glob("trial-*.json"))
    trials = [trial for path in paths if (trial := read_json(path)) is not None]
    extent = record.get("extent") or {  # what was compared before may still be there
        "initialisations": dict.fromkeys(trial["initialisation"] for trial in trials),
        "num_labelled": dict.fromkeys(trial["labelled"] for trial in trials),
    }
    out: dict[Any, dict[str, list[float]]] = {}
    for labelled in extent["num_labelled"]:
        of = [trial for trial in trials if trial["labelled"] == labelled]
        dots = {
            start: [next(iter(trial["figures"].values())) for trial in of if trial["initialisation"] == start]
            for start in extent["initialisations"]
        }
        out[labelled] = {start: column for start, column in dots.items() if column}
    return {labelled: dots for labelled, dots in out.items() if dots}


def _words_of(metric: str) -> str:
    return next(primary.words for primary in PRIMARY.values() if primary.name == metric)


def _strips(artifact: Made) -> list[Chart]:
    """A chart for each number of labelled subjects: a dot a trial."""
    drawn = []
    paths: list[Place] = list(artifact.folder.glob("trial-*.json"))
    for labelled, dots in _trials(artifact.folder, artifact.record).items():
        trial = read_json(paths[0])
        assert trial is not None
        metric = next(iter(trial["figures"]))
        title, of = f"Trials with {labelled} labelled subjects", f"target {artifact.folder.name}"
        drawn.append(charts.strip(title, "initialisation", _words_of(metric), dots, of=of))
    return drawn


def _with_and_without(artifact: Made) -> list[Chart]:
    """What semantics add, a chart for each target and number of labelled subjects (the paper's Fig. 2)."""
    drawn = []
    rows = artifact.record.get("semantics", [])
    for target, labelled in dict.fromkeys((row["target"], row["labelled"]) for row in rows):
        folder = artifact.folder.parent.parent / "transfer" / f"{artifact.folder.name}-{target}"
        trials = _trials(folder, read_json(folder / "manifest.json") or {}).get(labelled, {})
        told = {
            row["without"]: (trials[row["without"]], trials[row["with"]], _gain(row))
            for row in rows
            if (row["target"], row["labelled"]) == (target, labelled) and {row["without"], row["with"]} <= trials.keys()
        }
        if told:
            title = f"{target}, {labelled} labelled"
            metric = next(row["metric"] for row in rows if row["target"] == target)
            drawn.append(charts.pairs(title, _words_of(metric), f"semantics in {artifact.folder.name}", told))
    return drawn


def _gain(row: Row) -> str:
    """The gain, with a star where trials tell it from none."""
    return f"{row['gain']:+.3f}{' *' if (row['p trials'] or 1) < SIGNIFICANT else ''}"
