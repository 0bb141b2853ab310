"""A target made ready: its cases in Ray's object store, and who learns and who tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from raygenesis import cluster
from raygenesis.archive.readers import read_scan_geometry
from raygenesis.config import Settings
from raygenesis.errors import RaygenesisError, ScanError, SettingsError
from raygenesis.machine import num_cores
from raygenesis.progress import progress, say
from raygenesis.transfer.cases import Case, Form, form_of, read_cases
from raygenesis.transfer.examples import SEGMENTATION, Example, ImageFile, Problem, Target
from raygenesis.transfer.leakage import seen_subjects
from raygenesis.transfer.split import Split, split_examples
from raygenesis.transfer.trial import Held, Pose
from raygenesis.workspace import Workspace, digest

CPUS_PER_TRIAL = 1
EXAMPLES_PER_BLOCK = 32
MOST_HEADERS = 200  # looked at for the median voxel size


@dataclass(frozen=True)
class Prepared:
    """A target whose cases lie in Ray's object store: what can be learnt from, and the draws."""

    pose: Pose
    target: Target
    split: Split
    held: Held
    problems: tuple[Problem, ...]


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


def form_for(target: Target, settings: Settings) -> Form:
    """The form of a target's cases by the settings. Raises SettingsError where they have other dimensions."""
    whole_scans = all(example.region is None for example in target.examples)
    to_segment = target.task == SEGMENTATION
    if to_segment and settings.finetune.mode == "knn":
        raise SettingsError("finetune.mode=knn tells one answer an image: give full, encoder or frozen to segment")
    cube, scan = settings.discovery.cube_shape, settings.autoencoder.input_shape
    shape = settings.finetune.input_shape or (cube if to_segment or not whole_scans else scan)
    spacing = None
    if to_segment and whole_scans:
        spacing = settings.finetune.spacing_mm or common_spacing(target)
    if to_segment and settings.finetune.mode == "knn":
        raise SettingsError("finetune.mode=knn answers for whole scans: to segment choose full, encoder or frozen")
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
            f"the label maps hold the values {sorted(values)}: number the classes 0 (background), 1, 2, … without a "
            "gap, or name them in the target's `classes`"
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
    threads = cluster.threads_per_worker(min(room, num_cores()))
    return Pose(task, num_classes, form, settings.finetune, num_gpus, threads)


def _gpus_of(settings: Settings) -> float:
    asked = settings.finetune.num_gpus
    return float(settings.pretraining.use_gpu) if asked is None else asked
