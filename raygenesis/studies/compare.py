"""Compare: a whole plan: every initialisation pretrained alike on one archive, and fine-tuned on every target."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.discovery.crop import crop
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.errors import SettingsError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.pretraining.pretexts import PRETEXTS, pretext_of
from raygenesis.pretraining.pretrain import pretrain
from raygenesis.pretraining.stores import check_pretext, with_store_settings
from raygenesis.settings import Settings, settings_from
from raygenesis.studies.paper import beside_ours
from raygenesis.studies.plan import PlannedInitialisation, StudyPlan, read_plan
from raygenesis.studies.semantics import SEMANTICS_NOTE, semantics_of
from raygenesis.text.tables import Rows, as_csv
from raygenesis.training.feeding import cubes_of_epoch
from raygenesis.transfer.finetune import finetune
from raygenesis.transfer.initialisations import check_fits, find_initialisations, is_file
from raygenesis.transfer.prepared import resolve_target
from raygenesis.transfer.results import results_in
from raygenesis.transfer.runs import Run, runs_of
from raygenesis.transfer.split import count_of
from raygenesis.transfer.statistics import RANDOM
from raygenesis.transfer.table import LEGEND, in_words, latex, lines_of, markdown, wide
from raygenesis.transfer.targets import PUBLISHED
from raygenesis.transfer.targets.description import Description
from raygenesis.workspace.artifacts import COMPARISONS, CROPS, PATTERNS, RUNS
from raygenesis.workspace.files import publish, remove_tree
from raygenesis.workspace.manifest import ComparisonCounts, ComparisonManifest, TransferManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# Cubes that a pretraining sees may differ from the plan's by this share, as epochs are whole.
MOST_APART = 0.1


def compare(
    plan_file: Path, workspace: Workspace, settings: Settings, announce: Announce = unannounced
) -> ComparisonManifest:
    """Pretrain and fine-tune what a plan says, and write its tables to `comparisons/<plan>/`; returns the manifest.

    Every pretraining, and every trial, that is there is kept: a call that was interrupted goes on. Raises a
    RaygenesisError before any training where the plan, a target or a file of weights is at fault.
    """
    watch = Stopwatch()
    plan, targets = read_plan(plan_file)
    name, command = plan_file.stem, ("compare", plan_file.name)
    folder = workspace.comparison(name)
    _check(plan, name, targets, workspace, settings)
    _make_stores(plan, workspace, settings, announce)
    starts, cubes = [], {}
    for start in plan.initialisations:
        source, seen = _pretrained(start, plan, name, workspace, settings, announce)
        starts.append(f"{start.title}={source}")
        if seen:
            cubes[start.title] = seen
    manifests = {}
    for title, description in targets.items():
        say("compare", f"target {title}")
        manifests[title] = finetune(description, workspace, settings, starts, f"{name}-{title}", command, announce)
    inputs = {f"transfer {title}": manifest.finished for title, manifest in manifests.items()}
    stage = Stage(COMPARISONS, folder, {"plan": plan.model_dump(mode="json")}, inputs, command=command)
    made = COMPARISONS.read(folder)
    if made is not None and made.fingerprint == stage.fingerprint():
        say("compare", f"nothing to do: the tables are in {folder}")
        return made
    remove_tree(folder)  # tables are written anew whenever a trial, a target or an initialisation has been added
    with stage.claimed():
        return _finish(stage, plan, name, targets, manifests, cubes, workspace, settings, watch)


def _check(
    plan: StudyPlan, name: str, targets: Mapping[str, Description], workspace: Workspace, settings: Settings
) -> None:
    """Raise what is at fault with pretext tasks, targets, weights, or one for the other."""
    for word in (start.weights for start in plan.initialisations if start.weights not in (None, RANDOM)):
        if not is_file(word) and not RUNS.read(workspace.run(word)):
            close = difflib.get_close_matches(word, PRETEXTS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise SettingsError(
                f"initialisations: {word!r} is neither a pretext task{hint}, nor a finished run in "
                f"{workspace.root}/runs, nor a file of weights"
            )
    given = [f"{start.title}={start.weights}" for start in plan.initialisations if start.pretext is None]
    own = {start.title: _settings_of(start, settings) for start in plan.initialisations if start.pretext is not None}
    for title, chosen in own.items():
        artifact = pretext_of(chosen.pretraining).store
        store = artifact.read(workspace.folder(artifact))
        own[title] = chosen if store is None else with_store_settings(chosen, store)
        check_pretext(own[title].pretraining, own[title].discovery, store)
    runs = [*runs_of(given, workspace), *(Run(title, workspace, chosen) for title, chosen in own.items())]
    for title, description in targets.items():
        workspace.transfer(f"{name}-{title}")  # a name that is no name
        posed = resolve_target(description, workspace, settings, runs)
        starts = find_initialisations(given, workspace, settings.pretraining, posed.target.ndim)
        for chosen in own.values():
            starts += find_initialisations([RANDOM], workspace, chosen.pretraining, settings.ndim)
        for start in starts:
            check_fits(start, posed.form.input_shape, posed.settings.finetune.mode)


def _settings_of(start: PlannedInitialisation, settings: Settings) -> Settings:
    """The settings of a pretext task's training."""
    tree = settings.model_dump(mode="json")
    tree["pretraining"] |= {"pretext": start.pretext, **start.settings}
    return settings_from(tree, settings.given)


def _make_stores(plan: StudyPlan, workspace: Workspace, settings: Settings, announce: Announce) -> None:
    """Patterns and random crops, each where a pretext task of the plan learns from it and there is none yet."""
    learnt_from = {PRETEXTS[start.pretext].store for start in plan.initialisations if start.pretext is not None}
    if PATTERNS in learnt_from and PATTERNS.read(workspace.patterns) is None:
        embed(workspace, settings, announce=announce)
        discover(workspace, settings, announce)
    if CROPS in learnt_from and CROPS.read(workspace.crops) is None:
        crop(workspace, settings, announce)


def _pretrained(
    start: PlannedInitialisation,
    plan: StudyPlan,
    name: str,
    workspace: Workspace,
    settings: Settings,
    announce: Announce,
) -> tuple[str, int]:
    """What `finetune` is to begin with, pretrained first where it is a pretext task, and the cubes that that took."""
    if start.weights is not None:
        return start.weights, 0
    run = f"{name}-{start.title}".replace("+", "-")
    chosen = _settings_of(start, settings)
    pretraining = chosen.pretraining
    rows = read_patterns(
        workspace.folder(pretext_of(pretraining).store), ["pattern_id"],
        predicate(TRAINING, pretraining.num_neighbours, pretraining.num_coordinates),
    ).num_rows  # fmt: skip
    _, an_epoch = cubes_of_epoch(rows, pretraining.batch_size)
    epochs = max(1, round(plan.cubes / an_epoch))
    cubes = epochs * an_epoch
    tree = chosen.model_dump(mode="json")
    tree["pretraining"] |= shared_out(chosen, epochs)
    far = abs(cubes / plan.cubes - 1) > MOST_APART
    say(
        "compare",
        f"{start.title}: {epochs} epochs of {an_epoch} cubes, {cubes} in all"
        + f"; warning: far from the plan's cubes={plan.cubes}, which should be many epochs" * far,
    )
    chosen = settings_from(tree, settings.given)
    pretrain(workspace, chosen, run, announce=announce)
    return run, cubes


def shared_out(settings: Settings, epochs: int) -> dict[str, int]:
    """How a pretext task spends its epochs, in the settings' proportion where it has two phases; none is left out."""
    pretext, pretraining = pretext_of(settings.pretraining), settings.pretraining
    alone = 0
    if pretext.puzzle is not None and pretext.lambda_rec is not None:
        both = pretraining.num_classification_epochs + pretraining.num_joint_epochs
        alone = min(epochs - 1, round(epochs * pretraining.num_classification_epochs / both))
    return {"num_classification_epochs": alone, "num_joint_epochs": epochs - alone, "patience": epochs}


def _finish(
    stage: Stage[ComparisonManifest], plan: StudyPlan, name: str, targets: Mapping[str, Description],
    manifests: Mapping[str, TransferManifest],
    cubes: Mapping[str, int], workspace: Workspace, settings: Settings, watch: Stopwatch,
) -> ComparisonManifest:  # fmt: skip
    rows = [
        {"target": title, **row, "is_like_best": like}
        for title, manifest in manifests.items()
        for row, like in zip(manifest.table, manifest.is_like_best, strict=True)
    ]
    overview = wide(rows)
    semantics = [
        {"target": title, **row}
        for title, manifest in manifests.items()
        for row in semantics_of(results_in(workspace.transfer(f"{name}-{title}"), manifest.extent), manifest.task)
    ]
    papers = {title: _beside_paper(targets[title], manifest) for title, manifest in manifests.items()}
    pretrained = [{"initialisation": title, "cubes seen over all epochs": number} for title, number in cubes.items()]
    files = {
        "table.csv": as_csv(rows), "semantics.csv": as_csv(semantics), "table.tex": latex(overview),
        "table.md": told(overview, semantics, pretrained, papers),
    }  # fmt: skip
    for file, text in files.items():
        publish(stage.folder / file, partial(Path.write_text, data=text))
    manifest = ComparisonManifest(
        counts=ComparisonCounts(initialisations=len(plan.initialisations), targets=len(targets), rows=len(rows)),
        seconds=watch.seconds, config=settings.model_dump(mode="json"), overview=tuple(overview),
        semantics=tuple(semantics), cubes=dict(cubes),
        paper={title: tuple(table) for title, table in papers.items() if table},
    )  # fmt: skip
    manifest = stage.finish(manifest)
    added = (*lines_of(in_words(semantics)), SEMANTICS_NOTE) if semantics else ()
    for line in (*lines_of(overview), *added):
        say("compare", line)
    say("compare", f"{watch.seconds:.1f} s → {stage.folder}")
    return manifest


def told(overview: Rows, semantics: Rows, pretrained: Rows, papers: Mapping[str, Rows]) -> str:
    """The tables in Markdown, each with what a reader must know of it; papers: of each target, beside our figures."""
    parts = [markdown(overview), LEGEND]
    parts += [markdown(in_words(semantics)), SEMANTICS_NOTE] if semantics else []
    parts += [markdown(pretrained)] if pretrained else []
    parts += [
        f"{title}, beside the paper's Table 2 (%):\n\n{markdown(table)}" for title, table in papers.items() if table
    ]
    return "\n\n".join(parts) + "\n"


def _beside_paper(description: Description, manifest: TransferManifest) -> Sequence[Mapping[str, str]]:
    if description.layout is None:
        return []
    pool = manifest.counts.pool_subjects
    most = max(manifest.extent.num_labelled, key=lambda labelled: count_of(labelled, pool))
    ours = {
        row["initialisation"]: {
            key.removeprefix("mean_"): value for key, value in row.items() if key.startswith("mean_")
        }
        for row in manifest.table
        if row["labelled"] == most
    }
    return beside_ours(PUBLISHED[description.layout].code, ours)
