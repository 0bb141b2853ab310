"""Compare: carry out a plan: every initialisation pretrained alike on one archive, and fine-tuned on every target."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.settings import Settings
from raygenesis.studies.agreement import AGREEMENT_NOTE, LearntTarget, agreements
from raygenesis.studies.paper import beside_ours
from raygenesis.studies.plan import read_plan
from raygenesis.studies.semantics import SEMANTICS_NOTE, gains
from raygenesis.studies.study import Study, check_study, make_stores, pretrain_initialisation
from raygenesis.studies.tables import StudyTables, by_target, study_in_markdown, with_titles
from raygenesis.text.tables import as_csv, as_lines, latex
from raygenesis.transfer.description import Description
from raygenesis.transfer.finetune import FinetuneRequest, finetune
from raygenesis.transfer.results import results_in
from raygenesis.transfer.score_charts import score_charts
from raygenesis.transfer.split import most_labelled
from raygenesis.transfer.statistics import Comparison
from raygenesis.transfer.targets.layouts import LAYOUTS
from raygenesis.workspace.artifacts import COMPARISONS
from raygenesis.workspace.files import publish, remove_tree
from raygenesis.workspace.manifest import ComparisonCounts, ComparisonManifest, TransferManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace


def compare(
    plan_file: Path, workspace: Workspace, settings: Settings, announce: Announce = unannounced
) -> ComparisonManifest:
    """Pretrain and fine-tune what a plan lists, and write its tables to `comparisons/<plan>/`; returns the manifest.

    Every pretraining and every trial that is there is kept: a call that was interrupted goes on. Raises a
    RaygenesisError before any training where the plan, a target or a file of weights is at fault.
    """
    watch = Stopwatch()
    plan, targets = read_plan(plan_file)
    folder = workspace.comparison(plan_file.stem)
    study = Study(plan_file.stem, plan, targets, workspace, settings, announce)
    check_study(study)
    make_stores(study)
    pretrained = [pretrain_initialisation(study, planned) for planned in plan.initialisations]
    sources, command = tuple(f"{each.title}={each.source}" for each in pretrained), ("compare", plan_file.name)
    manifests = {}
    for title, description in targets.items():
        say("compare", f"target {title}")
        request = FinetuneRequest(study.transfer_name(title), sources, command)
        manifests[title] = finetune(description, workspace, settings, request, announce)
    inputs = {f"transfer {title}": manifest.finished for title, manifest in manifests.items()}
    stage = Stage(COMPARISONS, folder, {"plan": plan.model_dump(mode="json")}, inputs, command=command)
    present = COMPARISONS.read(folder)
    if present is not None and present.fingerprint == stage.fingerprint():
        say("compare", f"nothing to do: the tables are in {folder}")
        return present
    remove_tree(folder)  # tables are written anew whenever a trial, a target or an initialisation has been added
    with stage.claimed():
        return _publish(stage, study, manifests, {each.title: each.cubes for each in pretrained if each.cubes}, watch)


def _publish(
    stage: Stage[ComparisonManifest], study: Study, manifests: Mapping[str, TransferManifest],
    cubes: Mapping[str, int], watch: Stopwatch,
) -> ComparisonManifest:  # fmt: skip
    """Write the tables and figures of all targets, and the manifest."""
    tables = {title: [*map(Comparison.from_row, manifest.table)] for title, manifest in manifests.items()}
    rows = [
        {"target": title, **row.as_row(), "is_like_best": row.is_like_best}
        for title, table in tables.items()
        for row in table
    ]
    found = _tables(study, manifests, tables, cubes)
    files = {
        "table.csv": as_csv(rows), "semantics.csv": as_csv(found.semantics), "table.tex": latex(found.overview),
        "table.md": study_in_markdown(found), **{file: chart.svg for file, chart in found.figures.items()},
    }  # fmt: skip
    for file, text in files.items():
        path = stage.folder / file
        path.parent.mkdir(exist_ok=True)
        publish(path, partial(Path.write_text, data=text))
    manifest = ComparisonManifest(
        counts=ComparisonCounts(
            initialisations=len(study.plan.initialisations), targets=len(study.targets), rows=len(rows)
        ),
        seconds=watch.seconds, config=study.settings.model_dump(mode="json"), overview=tuple(found.overview),
        semantics=tuple(found.semantics), agreement=tuple(found.agreement), cubes=cubes,
        paper={title: tuple(rows) for title, rows in found.papers.items() if rows},
    )  # fmt: skip
    manifest = stage.finish(manifest)
    notes = [*as_lines(with_titles(found.semantics)), SEMANTICS_NOTE] if found.semantics else []
    notes += [*as_lines(found.agreement), AGREEMENT_NOTE] if found.agreement else []
    for line in (*as_lines(found.overview), *notes):
        say("compare", line)
    say("compare", f"{watch.seconds:.1f} s → {stage.folder}")
    return manifest


def _tables(
    study: Study, manifests: Mapping[str, TransferManifest], tables: Mapping[str, list[Comparison]],
    cubes: Mapping[str, int],
) -> StudyTables:  # fmt: skip
    """What there is to show of a study. tables: of each target."""
    learnt = {
        title: LearntTarget(manifest, results_in(study.workspace.transfer(study.transfer_name(title)), manifest.extent))
        for title, manifest in manifests.items()
    }
    charts = [each for title, one in learnt.items() for each in score_charts(f"{title} in {study.name}", one.results)]
    return StudyTables(
        overview=by_target(tables),
        semantics=[
            {"target": title, **gain.as_row()}
            for title, target in learnt.items()
            for gain in gains(target.results, target.manifest.task)
        ],
        agreement=[each.as_row() for each in agreements(learnt, study.workspace)],
        cubes=cubes,
        papers={title: _beside_paper(study.targets[title], manifests[title], table) for title, table in tables.items()},
        figures={f"figures/{chart.name}.svg": chart for chart in charts},
    )


def _beside_paper(
    description: Description, manifest: TransferManifest, table: list[Comparison]
) -> list[dict[str, str]]:
    """The paper's figures beside ours of the most labelled subjects; none for a target that is not the paper's."""
    if description.layout is None:
        return []
    most = most_labelled(manifest.extent.num_labelled, manifest.counts.pool_subjects)
    return beside_ours(LAYOUTS[description.layout].code, [row for row in table if row.labelled == most])
