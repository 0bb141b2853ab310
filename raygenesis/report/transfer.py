"""The section of target tasks: a table with marks, every trial, and an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from raygenesis.report import galleries
from raygenesis.report.artifact import ArtifactView
from raygenesis.report.parts import Absent, guarded
from raygenesis.report.pictures import Gallery
from raygenesis.text import charts
from raygenesis.text.charts import Chart, Labels
from raygenesis.text.tables import Rows
from raygenesis.transfer.metrics import TITLES
from raygenesis.transfer.results import Results, results_in
from raygenesis.transfer.score_charts import score_charts
from raygenesis.transfer.split import most_labelled
from raygenesis.transfer.table import LEGEND
from raygenesis.workspace.manifest import TransferManifest

MARKS = LEGEND.replace("**Best**", "Bold: best")


@dataclass(frozen=True)
class TransferSection:
    """table: a row an initialisation, none before the target is finished. charts: a dot a trial. example: a scan's."""

    table: Rows
    charts: Sequence[Chart]
    example: Gallery | Absent | None


def transfer_section(view: ArtifactView[TransferManifest]) -> TransferSection:
    """The table of initialisations, every trial (so far, of a target that is not finished) and an example."""
    results = results_in(view.folder, view.manifest.extent if view.manifest else None)
    return TransferSection(
        table=with_bold(view.manifest.shown) if view.manifest else [],
        charts=[*_strips(view.folder.name, results), *score_charts(f"target {view.folder.name}", results)],
        example=guarded(_example, view),
    )


def _example(view: ArtifactView[TransferManifest]) -> Gallery | None:
    title, image, manifest = f"Target {view.folder.name} example", view.folder / "example.npz", view.manifest
    if not image.is_file():
        return None
    if manifest is None:
        return galleries.example(image, (1, 1), title, None, ())
    return galleries.example(image, manifest.spacing_mm or (1, 1), title, _most_labelled(manifest), manifest.classes)


def _most_labelled(manifest: TransferManifest) -> int | str | None:
    """With how many labelled subjects the example's networks learnt: the most of those that were asked for."""
    pool, given = manifest.counts.pool_subjects, manifest.extent.num_labelled
    return most_labelled(given, pool) if given and pool else None


def with_bold(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The rows with what is best in bold: `**…**` becomes an element of the page."""
    return [{column: _bold(text) for column, text in row.items()} for row in rows]


def _bold(text: str) -> str:
    return Markup("<strong>{}</strong>").format(text.strip("*")) if text.startswith("**") else text


def primary_figures(results: Results, labelled: int | str) -> dict[str, list[float]]:
    """The primary figure, the first, of each initialisation's trials with so many labelled subjects."""
    starts = results.get(labelled, {})
    return {start: [next(iter(trial.figures.values())) for trial in trials] for start, trials in starts.items()}


def _strips(target: str, results: Results) -> list[Chart]:
    """A chart for each number of labelled subjects: a dot a trial."""
    drawn = []
    for labelled, starts in results.items():
        metric = next(iter(next(iter(starts.values()))[0].figures))
        title = f"Trials with {labelled} labelled subjects"
        labels = Labels(title, "initialisation", TITLES[metric], of=f"target {target}")
        drawn.append(charts.strip(labels, primary_figures(results, labelled)))
    return drawn
