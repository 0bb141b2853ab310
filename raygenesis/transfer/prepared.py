"""A target made ready: its cases in Ray's object store, and who learns and who tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raygenesis.archive.intake.identity import Identity, name_for_log, open_identity
from raygenesis.cluster import capacity, fan_out
from raygenesis.cluster.progress import progress, say
from raygenesis.errors import ScanError, SettingsError
from raygenesis.transfer.cases import Case, Form, read_cases
from raygenesis.transfer.examples import SEGMENTATION, Example, Image, Problem, Target
from raygenesis.transfer.leakage import Origin, seen_subjects
from raygenesis.transfer.resolved import ResolvedTarget
from raygenesis.transfer.runs import archive_settings
from raygenesis.transfer.setup import TrialSetup
from raygenesis.transfer.split import Split, Trial, split_examples
from raygenesis.transfer.stored_cases import StoredCases, StoredTrialCases
from raygenesis.workspace.hardware import num_cores
from raygenesis.workspace.workspace import Workspace

CPUS_PER_TRIAL = 1
EXAMPLES_PER_BLOCK = 32
MAX_REASONS = 3  # that the log lists of why examples are left out


@dataclass(frozen=True)
class Prepared:
    """A target whose cases lie in Ray's object store, with the draws and what its trials have in common."""

    setup: TrialSetup
    target: Target
    split: Split
    cases: StoredCases
    problems: tuple[Problem, ...]

    def cases_of(self, trial: Trial) -> StoredTrialCases:
        """The cases that a trial needs."""
        parts = (trial.examples, self.split.validation, self.split.test)
        return StoredTrialCases(*map(self.cases.select, parts))

    def cases_of_tuning(self, trial: Trial) -> StoredTrialCases:
        """The cases that a tuning trial needs: it is tested on the validation subjects and never sees others."""
        learnt_from, validation = self.cases.select(trial.examples), self.cases.select(self.split.validation)
        return StoredTrialCases(learnt_from, validation, test=validation)


def prepare(resolved: ResolvedTarget, workspace: Workspace) -> Prepared:
    """Draw who learns and who tests, and read their cases into Ray's object store.

    Where some cannot be used, the draw is made again without them. Raises ScanError or SettingsError where too little
    can be used.
    """
    target, form, settings = resolved.target, resolved.form, resolved.settings
    num_gpus = settings.gpus_of_trial("finetune")
    asked = "pretraining.use_gpu=true: finetune.num_gpus" if settings.finetune.num_gpus is None else "finetune.num_gpus"
    capacity.require(f"{asked}={num_gpus:g}", 1, CPUS_PER_TRIAL, num_gpus)
    identity = open_identity(workspace, (archive_settings(workspace) or settings.archive).keep_ids)
    own = Origin(workspace, settings.ndim, settings.validation_fraction, settings.seed, settings.archive.keep_ids)
    seen = seen_subjects(target.examples, own, resolved.runs)
    cases, classes, problems = StoredCases(), set[int](), list(target.problems)
    while True:
        if not target.examples:
            first = f"{name_for_log(problems[0].name, identity=identity)}: {problems[0].reason}"
            raise ScanError(f"none of the target's {len(problems)} examples can be used; the first: {first}")
        try:
            split = split_examples(target, seen, settings.finetune, settings.seed)
        except SettingsError:
            _report_left_out(problems, identity)  # it may be because of them
            raise
        missing = [
            replace(example, subject=identity.subject(example.subject))  # no name in the trials' files
            for example in split.examples if example.name not in cases.places
        ]  # fmt: skip
        if not missing:
            break
        cases, found, faults = _store(missing, form, cases)
        classes |= found
        problems += faults
        bad = {fault.name for fault in faults}
        target = replace(target, examples=tuple(example for example in target.examples if example.name not in bad))
    _report_left_out(problems, identity)
    num_classes = len(target.classes)
    if target.task == SEGMENTATION:
        num_classes = form.num_classes or _num_classes(classes)
    threads = capacity.threads_per_worker(max(1, min(capacity.room_for(CPUS_PER_TRIAL, num_gpus), num_cores())))
    setup = TrialSetup(target.task, num_classes, form, settings.finetune, num_gpus, threads)
    return Prepared(setup, target, split, cases, tuple(problems))


def _report_left_out(problems: Sequence[Problem], identity: Identity) -> None:
    if not problems:
        return
    say("finetune", f"{len(problems)} left out (failures.csv lists them), such as:")
    by_reason = {problem.reason: problem for problem in reversed(problems)}  # the first of each reason
    for problem in list(reversed(by_reason.values()))[:MAX_REASONS]:
        say("finetune", f"  {name_for_log(problem.name, identity=identity)}: {problem.reason}")


def _store(
    examples: Sequence[Example], form: Form, present: StoredCases
) -> tuple[StoredCases, set[int], list[Problem]]:
    """The present cases and those of these examples, the labels in the latter, and the examples that cannot be cases.

    Each image is decoded once.
    """
    blocks, places = list(present.blocks), dict(present.places)
    classes: set[int] = set()
    problems: list[Problem] = []
    options = fan_out.TaskOptions(stores_first=True)
    with progress("finetune", len(examples), "examples read") as ticker:
        for block, (names, found, faults) in fan_out.each(_read_block, _groups(examples, form), form, options=options):
            places |= {name: (len(blocks), place) for place, name in enumerate(names)}
            blocks.append(block)
            classes |= found
            problems += faults
            ticker.advance(len(names) + len(faults))
    return StoredCases(tuple(blocks), places), classes, sorted(problems, key=lambda problem: problem.name)


def _groups(examples: Sequence[Example], form: Form) -> list[list[list[Example]]]:
    """What each task reads: the examples of an image together, and of small images those of several."""
    by_image: dict[Image, list[Example]] = {}
    for example in examples:
        by_image.setdefault(example.image, []).append(example)
    groups: list[list[list[Example]]] = []
    size = EXAMPLES_PER_BLOCK
    for of_image in by_image.values():
        if size >= EXAMPLES_PER_BLOCK or form.spacing_mm is not None:
            groups.append([])
            size = 0
        groups[-1].append(of_image)
        size += len(of_image)
    return groups


def _read_block(group: Sequence[Sequence[Example]], form: Form) -> Any:
    """A pair of the cases, and of their names, the labels in them, and the examples that cannot be cases."""
    found = [case for examples in group for case in read_cases(examples, form)]
    cases = [case for case in found if isinstance(case, Case)]
    labels = {int(label) for case in cases if case.label is not None for label in np.unique(case.label)}
    return cases, ([case.name for case in cases], labels, [fault for fault in found if isinstance(fault, Problem)])


def _num_classes(values: set[int]) -> int:
    """Number of classes, background included, of label maps that hold `values`. Raises ScanError unless 0, 1, 2, …"""
    if len(values) < 2 or values != set(range(len(values))):
        raise ScanError(
            f"the label maps hold the values {sorted(values)}: number the classes 0 (background), 1, 2, … without a "
            "gap, or name them in the target's `classes`"
        )
    return len(values)
