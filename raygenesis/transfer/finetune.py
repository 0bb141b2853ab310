"""Fine-tune: a target's few labelled subjects → networks from each initialisation, one Ray task a trial → a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import yaml
from ray.exceptions import RayError, RayTaskError

from raygenesis import cluster
from raygenesis.archive.readers import read_scan_geometry
from raygenesis.config import Settings
from raygenesis.errors import RaygenesisError, ScanError, SettingsError
from raygenesis.progress import progress, say
from raygenesis.settings import settings_from
from raygenesis.training.experiment import TrainingError
from raygenesis.transfer.cases import Case, Form, form_of, read_cases
from raygenesis.transfer.description import Description, read_description, read_target, settings_for
from raygenesis.transfer.examples import SEGMENTATION, Example, ImageFile, Problem, Target
from raygenesis.transfer.initialisations import Initialisation, check_fits, find_initialisations
from raygenesis.transfer.leakage import seen_subjects
from raygenesis.transfer.predictions import join_examples
from raygenesis.transfer.split import Split, Trial, split_examples
from raygenesis.transfer.statistics import RANDOM, Comparison, compare
from raygenesis.transfer.table import as_csv, as_latex, as_markdown, lines_of
from raygenesis.transfer.trial import Held, Pose, run_trial, trial_path
from raygenesis.workspace import Stage, Stopwatch, Workspace, digest, manifest_of, publish, read_json

CPUS_PER_TRIAL = 1
EXAMPLES_PER_BLOCK = 32
MOST_HEADERS = 200  # looked at for the median voxel size

# Settings of `finetune` that say how it is executed, or how much of it there is.
EXECUTION = {"num_gpus"}
EXTENT = {"num_trials", "num_labelled"}


@dataclass(frozen=True)
class Prepared:
    """A target whose cases lie in Ray's object store: what can be learnt from, and the draws."""

    pose: Pose
    target: Target
    split: Split
    held: Held
    problems: tuple[Problem, ...]


def finetune(
    target_file: Path | Description, workspace: Workspace, settings: Settings, starts: Sequence[str] = (RANDOM, "default"),
    name: str = "default",
) -> dict[str, Any]:  # fmt: skip
    """Learn a target task from each initialisation and compare them; returns the manifest.

    starts: `random`, names of the workspace's runs, files of weights. Results go to `transfer/<name>/`. Trials that are
    there are kept: an interrupted call goes on, and more trials, initialisations or numbers of labelled subjects are
    added to what there is.
    """
    description = target_file if isinstance(target_file, Description) else read_description(target_file)
    settings = settings_for(description, as_pretrained(settings, workspace, starts))
    target = read_target(description)
    target = replace(target, keeps_empty=target.keeps_empty or description.empty_masks == "keep")
    initialisations = find_initialisations(starts, workspace, settings.pretraining, target.ndim)
    form = form_for(target, settings)
    for initialisation in initialisations:
        check_fits(initialisation, form.input_shape)
    folder = workspace.transfer(name)
    stage = Stage(folder, _chosen(settings, form), {"target": digest_of(target)})
    extent = _extent(initialisations, settings)
    if stage.is_finished() and manifest_of(folder, "finetune")["extent"] == extent:
        say("finetune", f"nothing to do: the table is in {folder}")
        return manifest_of(folder, "finetune")
    watch = Stopwatch()
    cluster.connect()
    with stage.claimed():
        ready = prepare(target, form, workspace, settings)
        _say_plan(ready, initialisations, settings)
        trials = _run_trials(ready, initialisations, folder, _key(stage))
        table = [
            row
            for labelled in settings.finetune.num_labelled
            for row in compare({name: rows[labelled] for name, rows in trials.items()}, target.task, labelled)
        ]
        return _finish(stage, table, ready, initialisations, extent, watch)


def prepare(target: Target, form: Form, workspace: Workspace, settings: Settings) -> Prepared:
    """Read a target's cases into Ray's object store, and draw who learns and who tests.

    Raises ScanError or SettingsError where too little can be used.
    """
    held, classes, problems = hold_cases(target, form)
    usable = replace(target, examples=tuple(example for example in target.examples if example.name in held.places))
    problems = (*target.problems, *problems)
    if problems:
        first = f"{problems[0].name}: {problems[0].reason}"
        say("finetune", f"{len(problems)} left out (failures.csv), the first: {first}")
    if not usable.examples:
        raise ScanError(f"none of the target's {len(problems)} examples can be used; the first: {first}")
    num_classes = len(target.classes)
    if target.task == SEGMENTATION:
        num_classes = form.num_classes or check_classes(classes)
    seen = seen_subjects(usable.examples, workspace, settings)
    split = split_examples(usable, seen, settings.finetune, settings.seed)
    return Prepared(_pose(usable.task, num_classes, form, settings), usable, split, held, problems)


def hold_cases(target: Target, form: Form) -> tuple[Held, set[int], list[Problem]]:
    """Every case read once, the labels that there are, and the examples that cannot be cases."""
    together: dict[Any, list[Example]] = {}
    for example in target.examples:
        together.setdefault(example.image, []).append(example)
    groups, block = [], []
    for examples in together.values():
        block.append(examples)
        if sum(map(len, block)) >= EXAMPLES_PER_BLOCK or form.spacing_mm is not None:
            groups.append(block)
            block = []
    groups += [block] if block else []
    read = ray.remote(num_cpus=1, num_returns=2)(_read_block)
    pairs = [read.remote(group, form) for group in groups]
    places: dict[str, tuple[int, int]] = {}
    classes: set[int] = set()
    problems: list[Problem] = []
    with progress("finetune", len(target.examples), "examples read") as ticker:
        for number, (_, told) in enumerate(pairs):
            names, found, faults = answer_of(told)
            places |= {name: (number, place) for place, name in enumerate(names)}
            classes |= found
            problems += faults
            ticker.advance(len(names) + len(faults))
    return Held(tuple(cases for cases, _ in pairs), places), classes, problems


def _read_block(group: Sequence[Sequence[Example]], form: Form) -> tuple[list[Case], Any]:
    """Cases; and their names, labels, and the examples that are none."""
    found = [case for examples in group for case in read_cases(examples, form)]
    cases = [case for case in found if isinstance(case, Case)]
    labels = {int(label) for case in cases if case.label is not None for label in np.unique(case.label)}
    return cases, ([case.name for case in cases], labels, [fault for fault in found if isinstance(fault, Problem)])


def as_pretrained(settings: Settings, workspace: Workspace, starts: Sequence[str]) -> Settings:
    """The settings, with intensity, shapes, split and subjects as the first run among `starts` has them."""
    for start in starts:
        if start == RANDOM or "/" in start or Path(start).suffix:
            continue
        path = workspace.run(start) / "config.yaml"
        if not path.is_file():
            continue
        run = settings_from(yaml.safe_load(path.read_text()))
        shared = {key: getattr(run, key) for key in ("intensity", "discovery", "autoencoder", "validation_fraction", "seed")}
        shared.pop("seed")
        if settings.archive.subject_pattern is None:
            shared["archive"] = run.archive
        return settings.model_copy(update=shared)
    return settings


def form_for(target: Target, settings: Settings) -> Form:
    """The form of a target's cases by the settings. Raises SettingsError where they have other dimensions."""
    whole_scans = all(example.region is None for example in target.examples)
    to_segment = target.task == SEGMENTATION
    cube, scan = settings.discovery.cube_shape, settings.autoencoder.input_shape
    shape = settings.finetune.input_shape or (cube if to_segment or not whole_scans else scan)
    spacing = None
    if to_segment and whole_scans:
        spacing = settings.finetune.spacing_mm or common_spacing(target)
    for key, sides in (("input_shape", shape), ("spacing_mm", spacing)):
        if sides is not None and len(sides) != target.ndim:
            raise SettingsError(
                f"finetune.{key}={list(sides)} has {len(sides)} sides and the target's images are {target.ndim}D: give "
                f"finetune.{key} with {target.ndim}"
            )
    return form_of(target, shape, spacing, settings.intensity)


def common_spacing(target: Target) -> tuple[float, ...]:
    """Median voxel size in mm, z y x (2D: y x), of the target's images; of many of an even sample of them."""
    images = [example.image for example in target.examples if isinstance(example.image, ImageFile)]
    spacings = []
    for image in images[:: -(-len(images) // MOST_HEADERS) or 1]:
        try:
            shape, spacing = read_scan_geometry(image.paths)[0]
        except (ScanError, OSError):
            continue  # told when it is read
        if len(shape) == target.ndim:
            spacings.append(spacing)
    if not spacings:
        raise ScanError(f"none of the target's images can be read as {target.ndim}D images: check `ndim` and `images`")
    return tuple(np.median(spacings, axis=0).tolist())


def check_classes(values: set[int]) -> int:
    """Number of classes, background included, of label maps that hold `values`. Raises ScanError unless 0, 1, 2, …"""
    if len(values) < 2 or values != set(range(len(values))):
        raise ScanError(
            f"the label maps hold the values {sorted(values)}: number the classes 0 (background), 1, 2, … without a gap, "
            "or name them in the target's `classes`"
        )
    return len(values)


def digest_of(target: Target) -> str:
    """Identity of a target: its examples, and the sizes of their files."""
    sizes = {path: path.stat().st_size for example in target.examples for path in example.image.paths if path.exists()}
    return digest([[repr(example), [sizes.get(path) for path in example.image.paths]] for example in target.examples])


def answer_of(reference: ray.ObjectRef) -> Any:
    """A task's answer; a user's mistake found there is one sentence here too."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaygenesisError):
            raise error.cause from None
        raise


def _pose(task: str, num_classes: int, form: Form, settings: Settings) -> Pose:
    num_gpus = _gpus_of(settings)
    room = cluster.room_for(CPUS_PER_TRIAL, num_gpus)
    if not room:
        key = "finetune.num_gpus" if settings.finetune.num_gpus is not None else "pretraining.use_gpu=true: num_gpus"
        raise SettingsError(
            f"{key}={num_gpus:g} can never be met: no node of the cluster has that many GPUs and a CPU: lower "
            "finetune.num_gpus (0 trains on CPUs), or join a cluster with GPUs"
        )
    threads = cluster.threads_per_worker(min(room, cluster.num_cores()))
    return Pose(task, num_classes, form, settings.finetune, num_gpus, threads)


def _gpus_of(settings: Settings) -> float:
    asked = settings.finetune.num_gpus
    return float(settings.pretraining.use_gpu) if asked is None else asked


def _run_trials(
    ready: Prepared, initialisations: Sequence[Initialisation], folder: Path, key: str
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
        results.setdefault(start.name, {}).setdefault(trial.labelled, []).append(result)
    return results


def _run_missing(ready: Prepared, missing: Sequence[tuple[Initialisation, Trial, str]], folder: Path) -> None:
    """As many at once as the cluster has room for."""
    pose, waiting, running, failures = ready.pose, list(missing), {}, []
    room = cluster.room_for(CPUS_PER_TRIAL, pose.num_gpus)
    task = ray.remote(
        num_cpus=CPUS_PER_TRIAL, num_gpus=pose.num_gpus, runtime_env=cluster.TRAINING_ENVIRONMENT
    )(run_trial)  # fmt: skip
    with progress("finetune", len(waiting), "trials") as ticker:
        while waiting or running:
            while waiting and len(running) < room:
                start, trial, key = waiting.pop(0)
                held = [ready.held.of(part) for part in _parts(ready.split, trial)]
                running[task.remote(pose, start, trial, held, folder, key)] = f"{start.name}, trial {trial.number}"
            (done,), _ = ray.wait(list(running), num_returns=1)
            title = running.pop(done)
            try:
                ticker.advance(note=answer_of(done))
            except (RayError, RaygenesisError) as error:
                failures.append(f"{title}: {str(error).strip().splitlines()[-1]}")
                ticker.advance(note="failed")
    if failures:
        raise TrainingError(
            f"{len(failures)} of {len(missing)} trials failed, the others are kept; the first, {failures[0]}; run the same "
            "command again to try them once more"
        )


def _parts(split: Split, trial: Trial) -> tuple[Sequence[Example], ...]:
    return trial.examples, split.validation, split.test


def _result(folder: Path, start: Initialisation, trial: Trial, key: str) -> dict[str, Any] | None:
    """A finished trial's result, or None where there is none of this very trial."""
    result = read_json(trial_path(folder, start.name, trial))
    return result if result is not None and result["key"] == key else None


def _chosen(settings: Settings, form: Form) -> dict[str, Any]:
    """The settings that decide the results."""
    chosen = settings.model_dump(
        mode="json", include={"finetune", "seed", "validation_fraction"}, exclude={"finetune": EXECUTION | EXTENT}
    )
    chosen["finetune"] |= {"input_shape": list(form.input_shape), "spacing_mm": form.spacing_mm and list(form.spacing_mm)}
    return {**chosen, "intensity": form.intensity.model_dump(mode="json")}


def _key(stage: Stage) -> str:
    return digest([stage.settings, stage.inputs])


def _extent(initialisations: Sequence[Initialisation], settings: Settings) -> dict[str, Any]:
    """How much is compared: it may grow."""
    return {
        "initialisations": {each.name: each.fingerprint for each in initialisations},
        "num_trials": settings.finetune.num_trials, "num_labelled": list(settings.finetune.num_labelled),
    }  # fmt: skip


def _finish(
    stage: Stage, table: Sequence[Comparison], ready: Prepared, initialisations: Sequence[Initialisation],
    extent: Mapping[str, Any], watch: Stopwatch,
) -> dict[str, Any]:  # fmt: skip
    texts = {"table.csv": as_csv(table), "table.md": as_markdown(table), "table.tex": as_latex(table)}
    failures = "".join(f'"{problem.name}","{problem.reason}"\n' for problem in ready.problems)
    for file, text in (texts | {"failures.csv": f"name,reason\n{failures}"}).items():
        publish(stage.folder / file, lambda aside, text=text: aside.write_text(text))
    target, split = ready.target, ready.split
    if target.task == SEGMENTATION:
        join_examples(stage.folder, [each.name for each in initialisations])
    counts = {
        "examples": len(target.examples), "left_out": len(ready.problems), "test_examples": len(split.test),
        "validation_examples": len(split.validation), "pool_subjects": split.num_pool_subjects,
        "seen_subjects": split.num_seen, "initialisations": len(initialisations), "trials": len(table) and
        sum(row.trials for row in table),
    }  # fmt: skip
    manifest = stage.finish(
        counts, watch.seconds, task=target.task, classes=list(target.classes), extent=extent,
        spacing_mm=stage.settings["finetune"]["spacing_mm"], table=[row.flat() for row in table],
        is_like_best=[row.is_like_best for row in table],
    )  # fmt: skip
    for line in lines_of(table):
        say("finetune", line)
    say(
        "finetune",
        f"mean ± s.d. over trials on {len(split.test)} test examples, {manifest['seconds']:.1f} s → {stage.folder}",
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
