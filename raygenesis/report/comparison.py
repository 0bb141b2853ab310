"""The section of comparisons: initialisations by targets, what semantics add, and the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raygenesis.report.artifact import ArtifactView, Contents
from raygenesis.report.transfer import primary_figures, with_bold
from raygenesis.studies.tables import with_titles
from raygenesis.text import charts
from raygenesis.text.charts import Chart, Labels, Pair
from raygenesis.text.tables import Rows
from raygenesis.transfer.metrics import TITLES
from raygenesis.transfer.results import results_in
from raygenesis.transfer.score_charts import score_charts
from raygenesis.workspace.artifacts import TRANSFER
from raygenesis.workspace.manifest import ComparisonManifest, Tree

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ComparisonSection:
    """The section of one comparison.

    overview: a row an initialisation. cubes: seen in pretraining, by its name. scores: by labelled subjects and by
    steps. charts: of what semantics add. agreement: what predicts fine-tuning. paper: tables by target.
    """

    overview: Rows
    cubes: Mapping[str, int]
    scores: Sequence[Chart]
    semantics: Rows
    charts: Sequence[Chart]
    agreement: Rows
    paper: Mapping[str, Rows]


def comparison_section(view: ArtifactView[ComparisonManifest], contents: Contents) -> ComparisonSection | None:
    """Initialisations by targets, what semantics add to each restoration task, and the paper's figures beside ours.

    None of a comparison that is not finished.
    """
    manifest = view.manifest
    if manifest is None:
        return None
    return ComparisonSection(
        overview=with_bold(manifest.overview),
        cubes=manifest.cubes,
        scores=_scores(view.folder.name, manifest, contents),
        semantics=with_titles(manifest.semantics),
        charts=_with_and_without(view.folder.name, manifest.semantics, contents),
        agreement=manifest.agreement,
        paper=manifest.paper,
    )


def _scores(name: str, manifest: ComparisonManifest, contents: Contents) -> list[Chart]:
    """The scores of each target, as the comparison's folder has them."""
    targets = {view.folder.name: view for view in contents.each(TRANSFER)}
    drawn = []
    for title in (given.removeprefix("transfer ") for given in manifest.inputs):
        view = targets.get(f"{name}-{title}")
        if view and view.manifest:
            drawn += score_charts(f"{title} in {name}", results_in(view.folder, view.manifest.extent))
    return drawn


def _with_and_without(name: str, semantics: Sequence[Tree], contents: Contents) -> list[Chart]:
    """What semantics add, a chart for each target and number of labelled subjects (the paper's Fig. 2)."""
    targets = {view.folder.name: view for view in contents.each(TRANSFER)}
    drawn = []
    for target, labelled in dict.fromkeys((row["target"], row["labelled"]) for row in semantics):
        view = targets.get(f"{name}-{target}")
        results = results_in(view.folder, view.manifest.extent if view.manifest else None) if view else {}
        values = primary_figures(results, labelled)
        rows = [row for row in semantics if (row["target"], row["labelled"]) == (target, labelled)]
        pairs = {
            row["without"]: Pair(values[row["without"]], values[row["with"]], _gain(row))
            for row in rows
            if {row["without"], row["with"]} <= values.keys()
        }
        if pairs:
            labels = Labels(f"{target}, {labelled} labelled", y=TITLES[rows[0]["metric"]], of=f"semantics in {name}")
            drawn.append(charts.pairs(labels, pairs))
    return drawn


def _gain(row: Tree) -> str:
    """The gain, with a star where trials tell it from none."""
    return f"{row['gain']:+.3f}{' *' if (row['p trials'] or 1) < SIGNIFICANT else ''}"
