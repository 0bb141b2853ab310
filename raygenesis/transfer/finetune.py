"""Fine-tune: a target's few labelled subjects → networks from each initialisation, one Ray task a trial → a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from raygenesis.cluster import joining
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.settings import FinetuneSettings, Settings
from raygenesis.text.tables import as_csv, as_lines, latex, markdown
from raygenesis.training.chosen_precision import with_precision
from raygenesis.transfer.cases import Form
from raygenesis.transfer.description import Description
from raygenesis.transfer.examples import SEGMENTATION, Problem
from raygenesis.transfer.initialisations import (
    RANDOM,
    SEPARATOR,
    Initialisation,
    check_all_used,
    check_fits,
    find_initialisations,
    new_decoder,
)
from raygenesis.transfer.planned import PlannedTrial, run_trials, trials_failed
from raygenesis.transfer.predictions import join_examples
from raygenesis.transfer.prepared import Prepared, prepare
from raygenesis.transfer.resolved import ResolvedTarget, resolve_target, target_inputs
from raygenesis.transfer.results import Results, TrialResult
from raygenesis.transfer.runs import PREPARATION, runs_of
from raygenesis.transfer.statistics import Comparison, compare_initialisations
from raygenesis.transfer.table import LEGEND, readable
from raygenesis.transfer.tuning import Rates, choose_rates
from raygenesis.transfer.work import finetune_work
from raygenesis.workspace.artifacts import RUNS, TRANSFER
from raygenesis.workspace.files import Place, publish
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.manifest import Extent, TransferCounts, TransferManifest, Tree
from raygenesis.workspace.stage import Stage, begun_in, settings_of
from raygenesis.workspace.workspace import Workspace

# The sources of initialisations that are compared by default.
DEFAULT_SOURCES = (RANDOM, "default")

# Settings of `finetune` that say how it is executed, or how much of it there is.
EXECUTION = {"num_gpus"}
EXTENT = {"num_trials", "num_labelled"}


@dataclass(frozen=True)
class FinetuneRequest:
    """What to compare on a target, and under which name.

    name: results go to `transfer/<name>/`. sources: of the initialisations: `random`, names of the workspace's runs,
    files of weights, or several of one with commas between them. command: the words after `raygenesis` of the command
    that this is a part of, if there is one.
    """

    name: str = "default"
    sources: tuple[str, ...] = DEFAULT_SOURCES
    command: tuple[str, ...] = ()


def finetune(
    description: Description, workspace: Workspace, settings: Settings, request: FinetuneRequest = FinetuneRequest(),
    announce: Announce = unannounced,
) -> TransferManifest:  # fmt: skip
    """Learn a target task from each initialisation and compare them; returns the manifest.

    Trials that are there are kept: an interrupted call goes on, and more trials, initialisations or numbers of labelled
    subjects are added to what there is. Raises a RaygenesisError.
    """
    resolved = resolve_target(description, workspace, settings, runs_of(request.sources, workspace))
    config = settings if request.command else resolved.settings  # what to give the command to do the same
    resolved = _with_precision(resolved, workspace.transfer(request.name))
    target, settings = resolved.target, resolved.settings
    initialisations = find_initialisations(request.sources, workspace, settings.pretraining, target.ndim)
    for initialisation in initialisations:
        check_fits(initialisation, resolved.form.input_shape, settings.finetune)
        check_all_used(initialisation.name, len(initialisation.sources), settings.finetune.num_trials)
    deciding = _deciding(settings.finetune, resolved.form, settings.seed, settings.validation_fraction)
    own = ("finetune", "--target", "TARGET.yaml", *(word for source in request.sources for word in ("--from", source)))
    folder = workspace.transfer(request.name)
    inputs = target_inputs(target, begun_in(TRANSFER, folder), workspace)
    command = request.command or (*own, "--name", request.name)
    stage = Stage(TRANSFER, folder, deciding, inputs, command=command)
    extent = _extent(initialisations, settings.finetune)
    present = stage.finished()
    if present is not None and present.extent == extent:
        say("finetune", f"nothing to do: the table is in {stage.folder}")
        return present
    watch = Stopwatch()
    joining.connect()
    segments, num_gpus = target.task == SEGMENTATION, settings.gpus_of_trial("finetune")
    for sentence in filter(
        None, (new_decoder(each, settings.finetune.takes_decoder) for each in initialisations if segments)
    ):
        say("finetune", sentence)
    announce([finetune_work(settings.finetune, num_gpus, initialisations, resolved.form.input_shape, segments)])
    ready = prepare(resolved, workspace)  # what is at fault here leaves nothing behind
    with stage.claimed():
        _report_plan(ready, len(initialisations))
        rates = choose_rates(ready, initialisations, stage.folder, _key(stage))
        results = _run_trials(ready, initialisations, stage, rates)
        randoms = {each.name: each.random for each in initialisations if each.random}
        table = [
            row
            for labelled, trials in results.items()
            for row in compare_initialisations(trials, target.task, labelled, randoms)
        ]
        _write_tables(stage.folder, table, ready.problems)
        if segments:
            most = max(ready.split.trials, key=lambda trial: trial.num_subjects)
            join_examples(stage.folder, [each.name for each in initialisations], most.labelled)
        runs = _runs_among(initialisations, workspace)
        manifest = stage.finish(
            replace(
                _manifest(ready, table, extent, config.model_dump(mode="json")), runs=runs,
                rates=tuple(rates.values()), seconds=watch.seconds,
            )
        )  # fmt: skip
        _report_table(manifest, stage.folder)
        return manifest


def _with_precision(target: ResolvedTarget, folder: Place) -> ResolvedTarget:
    """The target, with the precision that its trials compute in, or have computed in so far."""
    device = "cuda" if target.settings.gpus_of_trial("finetune") else "cpu"
    begun = settings_of(TRANSFER, folder)
    return replace(target, settings=with_precision(target.settings, "finetune", device, begun))


def _run_trials(
    ready: Prepared, initialisations: Sequence[Initialisation], stage: Stage[TransferManifest], rates: Rates
) -> Results:
    """Run the trials that have no result yet, and return all.

    Raises TrainingError, when all others are done, if any failed.
    """
    split, folder = ready.split, stage.folder
    key = _key(stage)
    planned = []
    for trial in split.trials:
        names = [[example.name for example in part] for part in (trial.examples, split.validation, split.test)]
        for each in initialisations:
            chosen, start = rates.get((each.name, trial.labelled)), each.of_trial(trial.number)
            rate = None if chosen is None else chosen.rate
            # The first source is left out, as of an initialisation that has no other.
            own_key = digest(
                [
                    key,
                    start.fingerprint,
                    *names,
                    *([] if rate is None else [rate]),
                    *([start.source] if start.source else []),
                ]
            )
            planned.append(PlannedTrial(start, trial, own_key, rate))
    missing = [each for each in planned if each.finished(folder) is None]
    failures = run_trials(missing, ready, folder) if missing else []
    if failures:
        raise trials_failed(failures, len(missing))
    results: dict[int | str, dict[str, list[TrialResult]]] = {}
    for done in planned:
        result = done.finished(folder)
        assert result is not None
        results.setdefault(done.trial.labelled, {}).setdefault(done.initialisation.name, []).append(result)
    return results


def _key(stage: Stage[TransferManifest]) -> str:
    """Digest of what decides the results of all trials."""
    return digest([stage.settings, stage.inputs])


def _deciding(finetune: FinetuneSettings, form: Form, seed: int, validation_fraction: float) -> Tree:
    """The settings that decide the results."""
    shapes = {"input_shape": list(form.input_shape), "spacing_mm": form.spacing_mm and list(form.spacing_mm)}
    return {
        "seed": seed, "validation_fraction": validation_fraction, "symmetric_axes": list(form.symmetric_axes) or None,
        "finetune": finetune.model_dump(mode="json", exclude=EXECUTION | EXTENT) | shapes,
        "intensity": form.intensity.model_dump(mode="json"),
        **({"archive": form.preparation.model_dump(mode="json", include=PREPARATION)} if form.preparation else {}),
    }  # fmt: skip


def _extent(initialisations: Sequence[Initialisation], finetune: FinetuneSettings) -> Extent:
    return Extent(
        initialisations={each.name: each.all_fingerprints for each in initialisations}, num_trials=finetune.num_trials,
        num_labelled=tuple(finetune.num_labelled),
    )  # fmt: skip


def _runs_among(initialisations: Sequence[Initialisation], workspace: Workspace) -> dict[str, str]:
    """The workspace's runs by the initialisations that they are; several of one with commas between them."""
    weights = {each.name: [source.weights for source in each.sources if source.weights] for each in initialisations}
    return {
        name: SEPARATOR.join(path.name for path in paths)
        for name, paths in weights.items()
        if paths and all(path.parent == workspace.root / RUNS.name for path in paths)
    }


def _write_tables(folder: Place, table: Sequence[Comparison], problems: Sequence[Problem]) -> None:
    rows = readable(table)
    legend = f"\n{LEGEND}\n" if len({row.initialisation for row in table}) > 1 else ""
    files = {
        "table.csv": as_csv([row.as_row() for row in table]), "table.md": f"{markdown(rows)}\n{legend}",
        "table.tex": latex(rows), "failures.csv": as_csv([asdict(problem) for problem in problems], ("name", "reason")),
    }  # fmt: skip
    for file, text in files.items():
        publish(folder / file, partial(Path.write_text, data=text))


def _manifest(ready: Prepared, table: Sequence[Comparison], extent: Extent, config: Tree) -> TransferManifest:
    target, split = ready.target, ready.split
    counts = TransferCounts(
        examples=len(target.examples), left_out=len(ready.problems), test_examples=len(split.test),
        validation_examples=len(split.validation), pool_subjects=split.num_pool_subjects,
        seen_subjects=split.num_seen, initialisations=len(extent.initialisations),
        trials=sum(row.trials for row in table),
    )  # fmt: skip
    return TransferManifest(
        counts=counts, config=config, task=target.task, classes=tuple(target.classes),
        extent=extent, spacing_mm=ready.setup.form.spacing_mm, table=tuple(row.as_row() for row in table),
        shown=tuple(readable(table)), is_like_best=tuple(row.is_like_best for row in table),
    )  # fmt: skip


def _report_plan(ready: Prepared, num_initialisations: int) -> None:
    split, target, finetune = ready.split, ready.target, ready.setup.settings
    labelled = sorted({trial.num_subjects for trial in split.trials})
    tested = len({example.subject for example in split.test})
    seen = f", {split.num_seen} of them seen in pretraining and never tested on" if split.num_seen else ""
    say(
        "finetune",
        f"{target.task}, {len(target.examples)} examples{seen}; {' and '.join(map(str, labelled))} of "
        f"{split.num_pool_subjects} subjects learnt from, {tested} others tested on; {num_initialisations} "
        f"initialisations × {finetune.num_trials} trials, mode {finetune.mode}",
    )


def _report_table(manifest: TransferManifest, folder: Place) -> None:
    for line in as_lines(manifest.shown):
        say("finetune", line)
    num_tested = manifest.counts.test_examples
    say("finetune", f"mean ± s.d. over trials on {num_tested} test examples, {manifest.seconds:.1f} s → {folder}")
