"""The sections of target tasks and of comparisons: tables with marks, every trial, an example, what semantics add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raygenesis.report import charts, galleries
from raygenesis.report.artifact import ArtifactView, Contents, Row, guarded
from raygenesis.report.charts import Chart
from raygenesis.studies.semantics import SEMANTICS_NOTE
from raygenesis.transfer.metrics import WORDS
from raygenesis.transfer.results import results_in
from raygenesis.transfer.split import count_of
from raygenesis.transfer.table import LEGEND, in_words
from raygenesis.workspace.artifacts import TRANSFER
from raygenesis.workspace.manifest import ComparisonManifest, TransferManifest

MARKS = LEGEND.replace("**Best**", "Bold: best")
SIGNIFICANT = 0.05


def transfer(artifact: ArtifactView[TransferManifest]) -> dict[str, Any]:
    """The table of initialisations, every trial (so far, of a target that is not finished) and an example."""
    manifest = artifact.manifest
    return {
        "artifact": artifact, "table": shown(manifest.shown if manifest else ()),
        "charts": _strips(artifact),
        "example": guarded(_example, artifact),
        "task": manifest.task if manifest else None,
    }  # fmt: skip


def _example(artifact: ArtifactView[TransferManifest]) -> dict[str, Any]:
    title, image = f"Target {artifact.folder.name} example", artifact.folder / "example.npz"
    if not image.is_file():
        return {"gallery": None}
    manifest = artifact.manifest
    spacing, names = (manifest.spacing_mm, manifest.classes) if manifest else (None, ())
    labelled = _most_labelled(manifest) if manifest else None
    return {"gallery": galleries.example(image, spacing or (1, 1), title, labelled, names)}


def _most_labelled(manifest: TransferManifest) -> int | str | None:
    """With how many labelled subjects the example's networks learnt: the most of those that were asked for."""
    pool, given = manifest.counts.pool_subjects, manifest.extent.num_labelled
    return max(given, key=lambda labelled: count_of(labelled, pool)) if given and pool else None


def comparison(artifact: ArtifactView[ComparisonManifest], contents: Contents) -> dict[str, Any]:
    """Initialisations by targets, what semantics add to each restoration task, and the paper's figures beside ours."""
    manifest = artifact.manifest
    if manifest is None:
        return {"artifact": artifact, "overview": []}
    return {
        "artifact": artifact, "overview": shown(manifest.overview),
        "cubes": manifest.cubes, "semantics": in_words(manifest.semantics),
        "paper": manifest.paper, "charts": _with_and_without(artifact, contents), "note": SEMANTICS_NOTE,
    }  # fmt: skip


def shown(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with what is best in bold."""
    return [{column: _bold(text) for column, text in row.items()} for row in rows]


def _bold(text: Any) -> Any:
    if isinstance(text, str) and text.startswith("**"):
        return Markup("<strong>{}</strong>").format(text.strip("*"))
    return text


def _dots(starts: Mapping[str, Sequence[Row]]) -> dict[str, list[float]]:
    """The primary figure, the first, of each initialisation's trials."""
    return {start: [next(iter(trial["figures"].values())) for trial in trials] for start, trials in starts.items()}


def _strips(artifact: ArtifactView[TransferManifest]) -> list[Chart]:
    """A chart for each number of labelled subjects: a dot a trial."""
    drawn = []
    for labelled, starts in results_in(
        artifact.folder, artifact.manifest.extent if artifact.manifest else None
    ).items():
        metric = next(iter(next(iter(starts.values()))[0]["figures"]))
        title, of = f"Trials with {labelled} labelled subjects", f"target {artifact.folder.name}"
        drawn.append(charts.strip(title, "initialisation", WORDS[metric], _dots(starts), of=of))
    return drawn


def _with_and_without(artifact: ArtifactView[ComparisonManifest], contents: Contents) -> list[Chart]:
    """What semantics add, a chart for each target and number of labelled subjects (the paper's Fig. 2)."""
    drawn = []
    rows = artifact.manifest.semantics if artifact.manifest else ()
    for target, labelled in dict.fromkeys((row["target"], row["labelled"]) for row in rows):
        folder = contents.workspace.transfer(f"{artifact.folder.name}-{target}")
        view = next((view for view in contents.each(TRANSFER) if view.folder == folder), None)
        extent = view.manifest.extent if view and view.manifest else None
        dots = _dots(results_in(folder, extent).get(labelled, {}))
        told = {
            row["without"]: (dots[row["without"]], dots[row["with"]], _gain(row))
            for row in rows
            if (row["target"], row["labelled"]) == (target, labelled) and {row["without"], row["with"]} <= dots.keys()
        }
        if told:
            title = f"{target}, {labelled} labelled"
            metric = next(row["metric"] for row in rows if row["target"] == target)
            drawn.append(charts.pairs(title, WORDS[metric], f"semantics in {artifact.folder.name}", told))
    return drawn


def _gain(row: Row) -> str:
    """The gain, with a star where trials tell it from none."""
    return f"{row['gain']:+.3f}{' *' if (row['p trials'] or 1) < SIGNIFICANT else ''}"
