"""Fine-tune: a target's few labelled subjects → networks from each initialisation, one Ray task a trial → a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from raygenesis.cluster import capacity, fan_out, joining
from raygenesis.cluster.progress import Stopwatch, progress, say
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.errors import RaygenesisError
from raygenesis.settings import Settings
from raygenesis.text.tables import as_csv
from raygenesis.training.experiment import TrainingError
from raygenesis.transfer.cases import Form
from raygenesis.transfer.examples import SEGMENTATION, Example
from raygenesis.transfer.initialisations import Initialisation, check_fits, find_initialisations
from raygenesis.transfer.predictions import join_examples
from raygenesis.transfer.prepared import CPUS_PER_TRIAL, Prepared, digest_of, prepare, resolve_target
from raygenesis.transfer.runs import runs_of
from raygenesis.transfer.split import Split, Trial
from raygenesis.transfer.statistics import RANDOM, Comparison, compare_initialisations
from raygenesis.transfer.table import LEGEND, latex, lines_of, markdown, told
from raygenesis.transfer.targets.description import Description
from raygenesis.transfer.trial import run_trial, trial_path
from raygenesis.transfer.work import finetune_work
from raygenesis.workspace.artifacts import TRANSFER
from raygenesis.workspace.files import Place, publish, read_json
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.manifest import Extent, TransferCounts, TransferManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

# What is compared when nothing is said.
STARTS = (RANDOM, "default")

# Settings of `finetune` that say how it is executed, or how much of it there is.
EXECUTION = {"num_gpus"}
EXTENT = {"num_trials", "num_labelled"}


def finetune(
    description: Description, workspace: Workspace, settings: Settings, starts: Sequence[str] = STARTS,
    name: str = "default", command: tuple[str, ...] = (), announce: Announce = unannounced,
) -> TransferManifest:  # fmt: skip
    """Learn a target task from each initialisation and compare them; returns the manifest.

    starts: `random`, names of the workspace's runs, files of weights. command: what this is a part of. Results go to
    `transfer/<name>/`. Trials that are there are kept: an interrupted call goes on, and more trials, initialisations or
    numbers of labelled subjects are added to what there is.
    """
    posed = resolve_target(description, workspace, settings, runs_of(starts, workspace))
    config = settings if command else posed.settings  # what the command is given to do the same
    target, settings = posed.target, posed.settings
    initialisations = find_initialisations(starts, workspace, settings.pretraining, target.ndim)
    for initialisation in initialisations:
        check_fits(initialisation, posed.form.input_shape, settings.finetune.mode)
    folder = workspace.transfer(name)
    own = ("finetune", "--target", "TARGET.yaml", *(word for start in starts for word in ("--from", start)))
    stage = Stage(
        TRANSFER, folder, _chosen(settings, posed.form), {"target": digest_of(target)},
        command=command or (*own, "--name", name),
    )  # fmt: skip
    extent = _extent(initialisations, settings)
    made = stage.finished()
    if made is not None and made.extent == extent:
        say("finetune", f"nothing to do: the table is in {folder}")
        return made
    watch = Stopwatch()
    joining.connect()
    segments = target.task == SEGMENTATION
    announce([finetune_work(settings, initialisations, posed.form.input_shape, segments)])
    ready = prepare(posed, workspace)  # what is at fault here leaves nothing behind
    with stage.claimed():
        _say_plan(ready, initialisations, settings)
        trials = _run_trials(ready, initialisations, folder, _key(stage))
        randoms = {start.name: start.random for start in initialisations if start.random}
        table = [
            row
            for labelled in settings.finetune.num_labelled
            for row in compare_initialisations(
                {name: rows[labelled] for name, rows in trials.items()}, target.task, labelled, randoms
            )
        ]
        return _finish(stage, table, ready, initialisations, extent, config, watch)


def _run_trials(
    ready: Prepared, initialisations: Sequence[Initialisation], folder: Place, key: str
) -> dict[str, dict[int | str, list[dict[str, Any]]]]:
    """The trials' results: of each initialisation, by the number of labelled subjects.

    Those that are there are not run again. Raises TrainingError, when all others are done, if any failed.
    """
    split = ready.split
    wanted = [
        (start, trial, digest([key, start.fingerprint, *([e.name for e in part] for part in _parts(split, trial))]))
        for trial in split.trials
        for start in initialisations
    ]
    missing = [each for each in wanted if _result(folder, *each) is None]
    if missing:
        _run_missing(ready, missing, folder)
    results: dict[str, dict[int | str, list[dict[str, Any]]]] = {}
    for start, trial, own_key in wanted:
        result = _result(folder, start, trial, own_key)
        assert result is not None
        results.setdefault(start.name, {}).setdefault(trial.labelled, []).append(result)
    return results


def _run_missing(ready: Prepared, missing: Sequence[tuple[Initialisation, Trial, str]], folder: Place) -> None:
    """As many at once as the cluster has room for."""
    setup, waiting = ready.setup, list(missing)
    running: dict[ray.ObjectRef[str], str] = {}
    failures: list[str] = []
    task = ray.remote(
        num_cpus=CPUS_PER_TRIAL, num_gpus=setup.num_gpus, max_retries=fan_out.MOST_LOSSES,
        runtime_env=fan_out.TRAINING_ENVIRONMENT
    )(run_trial)  # fmt: skip
    with progress("finetune", len(waiting), "trials") as ticker:
        while waiting or running:
            while waiting and len(running) < capacity.num_concurrent(CPUS_PER_TRIAL, setup.num_gpus):
                start, trial, key = waiting.pop(0)
                held = [ready.held.of(part) for part in _parts(ready.split, trial)]
                alone = replace(trial, examples=())  # their cases are what it needs
                running[task.remote(setup, start, alone, held, folder, key)] = f"{start.name}, trial {trial.number}"
            (done,), _ = ray.wait(list(running), num_returns=1)
            title = running.pop(done)
            try:
                ticker.advance(note=fan_out.result_of(done))
            except (RayError, RaygenesisError) as error:
                failures.append(f"{title}: {str(error).strip().splitlines()[-1]}")
                ticker.advance(note="failed")
    if failures:
        raise TrainingError(
            f"{len(failures)} of {len(missing)} trials failed, the others are kept; the first, {failures[0]}; run the "
            "same command again to try them once more"
        )


def _parts(split: Split, trial: Trial) -> tuple[Sequence[Example], ...]:
    return trial.examples, split.validation, split.test


def _result(folder: Place, start: Initialisation, trial: Trial, key: str) -> dict[str, Any] | None:
    """A finished trial's result, or None where there is none of this very trial."""
    result = read_json(trial_path(folder, start.name, trial))
    return result if result is not None and result["key"] == key else None


def _chosen(settings: Settings, form: Form) -> dict[str, Any]:
    """The settings that decide the results."""
    chosen = settings.model_dump(
        mode="json", include={"finetune", "seed", "validation_fraction"}, exclude={"finetune": EXECUTION | EXTENT}
    )
    chosen["finetune"] |= {
        "input_shape": list(form.input_shape),
        "spacing_mm": form.spacing_mm and list(form.spacing_mm),
    }
    return {**chosen, "intensity": form.intensity.model_dump(mode="json")}


def _run_of(start: Initialisation, stage: Stage[TransferManifest]) -> str | None:
    """The name of the workspace's run that an initialisation is, if it is one."""
    weights = start.weights
    return weights.name if weights is not None and weights.parent == stage.folder.parent.parent / "runs" else None


def _key(stage: Stage[TransferManifest]) -> str:
    return digest([stage.settings, stage.inputs])


def _extent(initialisations: Sequence[Initialisation], settings: Settings) -> Extent:
    return Extent(
        initialisations={each.name: each.fingerprint for each in initialisations},
        num_trials=settings.finetune.num_trials, num_labelled=tuple(settings.finetune.num_labelled),
    )  # fmt: skip


def _finish(
    stage: Stage[TransferManifest], table: Sequence[Comparison], ready: Prepared,
    initialisations: Sequence[Initialisation], extent: Extent, config: Settings, watch: Stopwatch,
) -> TransferManifest:  # fmt: skip
    rows = told(table)
    legend = f"\n{LEGEND}\n" if len(initialisations) > 1 else ""
    files = {
        "table.csv": as_csv([row.flat() for row in table]), "table.md": f"{markdown(rows)}\n{legend}",
        "table.tex": latex(rows),
        "failures.csv": as_csv([asdict(problem) for problem in ready.problems], ("name", "reason")),
    }  # fmt: skip
    for file, text in files.items():
        publish(stage.folder / file, partial(Path.write_text, data=text))
    target, split = ready.target, ready.split
    if target.task == SEGMENTATION:
        most = max(split.trials, key=lambda trial: trial.num_subjects)
        join_examples(stage.folder, [each.name for each in initialisations], most.labelled)
    counts = TransferCounts(
        examples=len(target.examples), left_out=len(ready.problems), test_examples=len(split.test),
        validation_examples=len(split.validation), pool_subjects=split.num_pool_subjects,
        seen_subjects=split.num_seen, initialisations=len(initialisations), trials=sum(row.trials for row in table),
    )  # fmt: skip
    manifest = TransferManifest(
        counts=counts, seconds=watch.seconds, config=config.model_dump(mode="json"), task=target.task,
        classes=tuple(target.classes), extent=extent, spacing_mm=ready.setup.form.spacing_mm,
        table=tuple(row.flat() for row in table), shown=tuple(rows),
        is_like_best=tuple(row.is_like_best for row in table),
        runs={each.name: run for each in initialisations if (run := _run_of(each, stage))},
    )  # fmt: skip
    manifest = stage.finish(manifest)
    for line in lines_of(rows):
        say("finetune", line)
    say(
        "finetune",
        f"mean ± s.d. over trials on {len(split.test)} test examples, {manifest.seconds:.1f} s → {stage.folder}",
    )
    return manifest


def _say_plan(ready: Prepared, initialisations: Sequence[Initialisation], settings: Settings) -> None:
    split, target = ready.split, ready.target
    labelled = sorted({trial.num_subjects for trial in split.trials})
    tested = len({example.subject for example in split.test})
    seen = f", {split.num_seen} of them seen in pretraining and never tested on" if split.num_seen else ""
    say(
        "finetune",
        f"{target.task}, {len(target.examples)} examples{seen}; {' and '.join(map(str, labelled))} of "
        f"{split.num_pool_subjects} subjects learnt from, {tested} others tested on; {len(initialisations)} "
        f"initialisations × {settings.finetune.num_trials} trials, mode {settings.finetune.mode}",
    )
