"""A target made ready: its cases in Ray's object store, and who learns and who tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from raygenesis.archive.formats.readers import read_scan_geometry
from raygenesis.archive.intake.identity import Identity, name_for_log, open_identity
from raygenesis.cluster import capacity, fan_out
from raygenesis.cluster.progress import progress, say
from raygenesis.errors import ScanError, SettingsError
from raygenesis.settings import Settings
from raygenesis.transfer.cases import Case, Form, form_of, read_cases
from raygenesis.transfer.examples import SEGMENTATION, Example, ImageFile, Problem, Target
from raygenesis.transfer.leakage import archive_settings, seen_subjects
from raygenesis.transfer.runs import Run, as_pretrained
from raygenesis.transfer.split import Split, split_examples
from raygenesis.transfer.targets.description import Description, read_target, settings_for
from raygenesis.transfer.trial import StoredCases, TrialSetup
from raygenesis.workspace.files import xxh3_of
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.hardware import num_cores
from raygenesis.workspace.workspace import Workspace

CPUS_PER_TRIAL = 1
EXAMPLES_PER_BLOCK = 32
MOST_HEADERS = 200  # looked at for the median voxel size
MOST_REASONS = 3  # told at once why examples are left out
MOST_HASHED_BYTES = 2**26  # of a larger label map the size has to do


@dataclass(frozen=True)
class ResolvedTarget:
    """A described target: what there is, how it is read, and the settings with what its description changes.

    runs: those that it is learnt from, none of whose subjects is to be tested on.
    """

    target: Target
    form: Form
    settings: Settings
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A target whose cases lie in Ray's object store: what can be learnt from, and the draws."""

    setup: TrialSetup
    target: Target
    split: Split
    held: StoredCases
    problems: tuple[Problem, ...]


def resolve_target(
    description: Description, workspace: Workspace, settings: Settings, runs: Sequence[Run] = ()
) -> ResolvedTarget:
    """Read a description as the runs were pretrained; nothing is decoded.

    Raises ScanError or SettingsError where it gives no target, or the runs are not given alike images.
    """
    of_runs = {run.name: settings_for(description, as_pretrained(settings, run)) for run in runs if run.settings}
    settings = next(iter(of_runs.values()), None) or settings_for(description, settings)
    made_with = archive_settings(workspace) or settings.archive
    pattern = settings.archive.subject_pattern or made_with.subject_pattern
    target = read_target(description, pattern)
    _check_alike(target, of_runs)
    return ResolvedTarget(target, form_for(target, settings), settings, tuple(runs))


def prepare(posed: ResolvedTarget, workspace: Workspace) -> Prepared:
    """Draw who learns and who tests, and read their cases into Ray's object store.

    Where some cannot be used, the draw is made again without them. Raises ScanError or SettingsError where too little
    can be used.
    """
    target, form, settings = posed.target, posed.form, posed.settings
    _check_room(settings)
    identity = open_identity(workspace, (archive_settings(workspace) or settings.archive).keep_ids)
    seen = seen_subjects(target.examples, workspace, settings, posed.runs)
    held, classes, problems = StoredCases((), {}), set(), list(target.problems)
    while True:
        if not target.examples:
            first = f"{name_for_log(problems[0].name, identity=identity)}: {problems[0].reason}"
            raise ScanError(f"none of the target's {len(problems)} examples can be used; the first: {first}")
        try:
            split = split_examples(target, seen, settings.finetune, settings.seed)
        except SettingsError:
            _say_left_out(problems, identity)  # it may be because of them
            raise
        missing = [
            replace(example, subject=identity.subject(example.subject))  # trials' files name nobody
            for example in split.examples if example.name not in held.places
        ]  # fmt: skip
        if not missing:
            break
        held, found, faults = _hold(missing, form, held)
        classes |= found
        problems += faults
        bad = {fault.name for fault in faults}
        target = replace(target, examples=tuple(example for example in target.examples if example.name not in bad))
    _say_left_out(problems, identity)
    num_classes = len(target.classes)
    if target.task == SEGMENTATION:
        num_classes = form.num_classes or check_classes(classes)
    num_gpus = settings.gpus_of_trial("finetune")
    threads = capacity.threads_per_worker(max(1, min(capacity.room_for(CPUS_PER_TRIAL, num_gpus), num_cores())))
    shared = TrialSetup(target.task, num_classes, form, settings.finetune, num_gpus, threads)
    return Prepared(shared, target, split, held, tuple(problems))


def _say_left_out(problems: Sequence[Problem], identity: Identity) -> None:
    if not problems:
        return
    say("finetune", f"{len(problems)} left out (failures.csv lists them), such as:")
    reasons = {problem.reason: problem for problem in reversed(problems)}  # the first of each reason
    for problem in list(reversed(reasons.values()))[:MOST_REASONS]:
        say("finetune", f"  {name_for_log(problem.name, identity=identity)}: {problem.reason}")


def _hold(examples: Sequence[Example], form: Form, held: StoredCases) -> tuple[StoredCases, set[int], list[Problem]]:
    """What is held and these examples' cases, the labels in them, and the examples that cannot be cases.

    Each image is decoded once; a few blocks more than there are CPUs are read at a time.
    """
    blocks, places = list(held.blocks), dict(held.places)
    classes: set[int] = set()
    problems: list[Problem] = []
    read: Any = ray.remote(num_cpus=1, num_returns=2)(_read_block)  # Ray's types know of one answer
    waiting = _groups(examples, form)
    running: dict[ray.ObjectRef[Any], ray.ObjectRef[list[Case]]] = {}
    most = 2 * int(ray.cluster_resources().get("CPU", 1))
    with progress("finetune", len(examples), "examples read") as ticker:
        while running or waiting:
            while waiting and len(running) < most:
                cases, told = read.remote(waiting.pop(0), form)
                running[told] = cases
            (done,), _ = ray.wait(list(running), num_returns=1)
            blocks.append(running.pop(done))
            names, found, faults = fan_out.result_of(done)
            places |= {name: (len(blocks) - 1, place) for place, name in enumerate(names)}
            classes |= found
            problems += faults
            ticker.advance(len(names) + len(faults))
    return StoredCases(tuple(blocks), places), classes, sorted(problems, key=lambda problem: problem.name)


def _groups(examples: Sequence[Example], form: Form) -> list[list[list[Example]]]:
    """What is read by one task: the examples of an image together, and of small images several."""
    together: dict[Any, list[Example]] = {}
    for example in examples:
        together.setdefault(example.image, []).append(example)
    groups: list[list[list[Example]]] = []
    size = EXAMPLES_PER_BLOCK
    for of_image in together.values():
        if size >= EXAMPLES_PER_BLOCK or form.spacing_mm is not None:
            groups.append([])
            size = 0
        groups[-1].append(of_image)
        size += len(of_image)
    return groups


def _read_block(group: Sequence[Sequence[Example]], form: Form) -> tuple[list[Case], Any]:
    """Cases; and their names, labels, and the examples that are none."""
    found = [case for examples in group for case in read_cases(examples, form)]
    cases = [case for case in found if isinstance(case, Case)]
    labels = {int(label) for case in cases if case.label is not None for label in np.unique(case.label)}
    return cases, ([case.name for case in cases], labels, [fault for fault in found if isinstance(fault, Problem)])


def form_for(target: Target, settings: Settings) -> Form:
    """The form of a target's cases by the settings. Raises SettingsError where they have other dimensions."""
    to_segment = target.task == SEGMENTATION
    if to_segment and settings.finetune.mode == "knn":
        raise SettingsError("finetune.mode=knn tells one answer an image: give full, encoder or frozen to segment")
    shape = _shape_for(target, settings)
    spacing = None
    if to_segment and _shows_whole_scans(target):
        spacing = settings.finetune.spacing_mm or common_spacing(target)
    for key, sides in (("input_shape", shape), ("spacing_mm", spacing)):
        if sides is not None and len(sides) != target.ndim:
            raise SettingsError(
                f"finetune.{key}={list(sides)} has {len(sides)} sides and the target's images are {target.ndim}D: give "
                f"finetune.{key} with {target.ndim}"
            )
    return form_of(target, shape, spacing, settings.intensity)


def _shape_for(target: Target, settings: Settings) -> tuple[int, ...]:
    """Voxels that a network sees at once."""
    to_classify_whole = target.task != SEGMENTATION and _shows_whole_scans(target)
    usual = settings.autoencoder.input_shape if to_classify_whole else settings.discovery.cube_shape
    return settings.finetune.input_shape or usual


def _shows_whole_scans(target: Target) -> bool:
    return all(example.region is None for example in target.examples)


def _check_alike(target: Target, of_runs: Mapping[str, Settings]) -> None:
    """Raise SettingsError where runs were pretrained on unlike images, and nobody says which all are to be given.

    of_runs: by what tables call a run, the settings that a target would have as it was pretrained.
    """
    deciding: dict[str, Callable[[Settings], Any]] = {
        "intensity.window": lambda settings: target.window or settings.intensity.window,
        "finetune.input_shape": lambda settings: _shape_for(target, settings),
    }
    for key, of in deciding.items():
        values = {name: of(settings) for name, settings in of_runs.items()}
        for name, value in values.items():
            first, usual = next(iter(values.items()))
            if value != usual:
                told, other = (json.dumps(each) for each in (usual, value))
                raise SettingsError(
                    f"{key} would be {told} as {first} was pretrained and {other} as {name} was, but all are given the "
                    f"same images: give {key} on the command line, or compare them one by one"
                )


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
            f"the label maps hold the values {sorted(values)}: number the classes 0 (background), 1, 2, … without a "
            "gap, or name them in the target's `classes`"
        )
    return len(values)


def digest_of(target: Target) -> str:
    """Identity of a target: its examples, the sizes of their images' files and the content of their labels'."""
    known: dict[Path, Any] = {}

    def of_file(path: Path, content: bool) -> Any:
        if path not in known:
            size = path.stat().st_size if path.is_file() else None
            known[path] = xxh3_of(path) if content and size is not None and size <= MOST_HASHED_BYTES else size
        return known[path]

    def of(value: Any) -> Any:
        if isinstance(value, Path):
            return of_file(value, content=True)
        if isinstance(value, tuple) and value and isinstance(value[0], Path):
            return [of_file(path, content=False) for path in value]
        return repr(value)

    told = [
        [
            [repr(value) for value in (example.name, example.subject, example.value, example.region, example.split)],
            [of_file(path, content=False) for path in example.image.paths],
            [of(getattr(example.label, field.name)) for field in fields(example.label)] if example.label else None,
        ]
        for example in target.examples
    ]
    return digest([target.task, target.classes, target.keeps_empty, told])


def _check_room(settings: Settings) -> None:
    """Raise SettingsError if the cluster never has room for a trial."""
    num_gpus = settings.gpus_of_trial("finetune")
    key = "finetune.num_gpus"
    if settings.finetune.num_gpus is None:
        key = f"pretraining.use_gpu=true: {key}"
    capacity.require(f"{key}={num_gpus:g}", 1, CPUS_PER_TRIAL, num_gpus)
