"""Splits of a target by subject: by official lists where there are any, else by seeded draws."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raygenesis.archive.intake.identity import name_for_log
from raygenesis.errors import SettingsError
from raygenesis.settings import FinetuneSettings
from raygenesis.settings.streams import TEST_SUBJECTS, TRIAL_SUBJECTS, TUNING_SUBJECTS, Stream
from raygenesis.transfer.examples import CLASSIFICATION, MULTILABEL, SEGMENTATION, TEST, VALIDATION, Example, Target

MIN_TEST_SUBJECTS = 2
TUNING_TRIALS = 2  # draws of labelled subjects on which each learning rate of a grid is tried
KEY_BYTES = 16


@dataclass(frozen=True)
class Trial:
    """One draw of labelled subjects, and the seed of everything else: the same for each initialisation.

    labelled: as `finetune.num_labelled` has it; num_subjects: how many these are. A trial of more labelled subjects
    includes those of a trial of the same number with fewer.
    """

    number: int
    seed: int
    labelled: int | str
    num_subjects: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Split:
    """Examples for testing and validation, the same in every trial, and the trials' draws from the rest.

    num_pool_subjects: subjects that trials draw from. num_seen: subjects that pretraining has learnt from, who are
    therefore not tested on. tuning: other draws, on which learning rates are tried; none where there is one rate.
    """

    test: tuple[Example, ...]
    validation: tuple[Example, ...]
    trials: tuple[Trial, ...]
    num_pool_subjects: int
    num_seen: int
    tuning: tuple[Trial, ...] = ()

    @property
    def examples(self) -> list[Example]:
        """All that are used, each once."""
        parts = (self.test, self.validation, *(trial.examples for trial in (*self.trials, *self.tuning)))
        return list({example.name: example for part in parts for example in part}.values())


def split_examples(target: Target, seen: set[str], settings: FinetuneSettings, seed: int) -> Split:
    """Draw a target's test, validation and labelled subjects; only those not `seen` in pretraining are tested on.

    Raises SettingsError if an official list has seen subjects, or subjects or classes are too few.
    """
    examples = target.examples
    if settings.allow_seen:
        seen = set()
    groups = _subjects_by_class(target)
    subjects = sorted(groups)
    if any(example.split is not None for example in examples):
        tested, validated = ({e.subject for e in examples if e.split == part} for part in (TEST, VALIDATION))
        _check_official(tested, validated, {e.subject for e in examples if e.split not in (TEST, VALIDATION)}, seen)
        if not validated:
            rest = [subject for subject in subjects if subject not in tested]
            validated = set(_in_proportion(rest, groups, TEST_SUBJECTS.generator(seed))[: settings.num_validation])
    else:
        tested, validated = _drawn(subjects, groups, seen, settings, seed)
    chooses_rate = settings.chooses_rate(target.task == SEGMENTATION)
    if (settings.patience or chooses_rate) and not validated:
        given = f"learning_rate={list(settings.rates)}" if chooses_rate else f"patience={settings.patience}"
        instead = "one learning rate" if chooses_rate else "patience=null"
        raise SettingsError(
            f"finetune.{given} needs subjects to validate on: give finetune.num_validation, or {instead}"
        )
    pool = [subject for subject in subjects if subject not in tested | validated]
    to_draw = [example for example in examples if example.subject not in tested | validated]

    def draw(stream: Stream, num_trials: int) -> tuple[Trial, ...]:
        generators = [stream.generator(seed, number) for number in range(num_trials)]
        return _trials(to_draw, groups, settings.num_labelled, generators)

    test, validation = (tuple(each for each in examples if each.subject in part) for part in (tested, validated))
    split = Split(
        test, validation, draw(TRIAL_SUBJECTS, settings.num_trials), len(pool), len(seen & set(subjects)),
        draw(TUNING_SUBJECTS, TUNING_TRIALS) if chooses_rate else (),
    )  # fmt: skip
    _check_classes(target, split)
    return split


def _trials(
    examples: Sequence[Example], groups: Mapping[str, int], num_labelled: Sequence[int | str],
    generators: Sequence[np.random.Generator],
) -> tuple[Trial, ...]:  # fmt: skip
    """For each generator a draw of so many labelled subjects, of those that the examples are of."""
    pool = sorted({example.subject for example in examples})
    trials = []
    for number, generator in enumerate(generators):
        order = _in_proportion(pool, groups, generator)
        own_seed = int(generator.integers(2**31))
        for labelled in num_labelled:
            drawn = set(order[: count_of(labelled, len(pool))])
            chosen = tuple(example for example in examples if example.subject in drawn)
            trials.append(Trial(number, own_seed, labelled, len(drawn), chosen))
    return tuple(trials)


def most_labelled(given: Sequence[int | str], num_subjects: int) -> int | str:
    """Which of the numbers of labelled subjects means the most of so many."""
    return max(given, key=lambda labelled: count_of(labelled, num_subjects))


def count_of(labelled: int | str, num_subjects: int) -> int:
    """How many subjects `finetune.num_labelled` means. Raises SettingsError if there are not so many."""
    count = labelled if isinstance(labelled, int) else max(2, round(float(labelled.rstrip("%")) / 100 * num_subjects))
    if count > num_subjects:
        raise SettingsError(
            f"finetune.num_labelled={labelled} is more than the {num_subjects} labelled subjects that are not tested "
            "on: lower it, or finetune.num_test and finetune.num_validation"
        )
    return count


def _drawn(
    subjects: Sequence[str], groups: Mapping[str, int], seen: set[str], settings: FinetuneSettings, seed: int
) -> tuple[set[str], set[str]]:
    """Draw subjects to test on, of those not seen, and to validate on, who may have been seen."""
    unseen = [subject for subject in subjects if subject not in seen]
    most = max((count for count in settings.num_labelled if isinstance(count, int)), default=2)
    num_test = min(settings.num_test, len(unseen), len(subjects) - most - settings.num_validation)
    if num_test < MIN_TEST_SUBJECTS:
        raise SettingsError(
            f"finetune.num_labelled={most}, finetune.num_test={settings.num_test} and finetune.num_validation="
            f"{settings.num_validation} cannot be met: there are {len(subjects)} labelled subjects, {len(unseen)} of "
            f"them unseen in pretraining, and testing needs at least {MIN_TEST_SUBJECTS} unseen ones beside others: "
            "add labelled scans of new subjects, or lower finetune.num_labelled"
        )
    generator = TEST_SUBJECTS.generator(seed)
    tested = set(_in_proportion(unseen, groups, generator)[:num_test])
    rest = [subject for subject in subjects if subject not in tested]
    return tested, set(_in_proportion(rest, groups, generator)[: settings.num_validation])


def _in_proportion(subjects: Sequence[str], groups: Mapping[str, int], generator: np.random.Generator) -> list[str]:
    """A random order in which the first subjects, however many, have the classes in proportion."""
    places: dict[str, tuple[float, bytes]] = {}
    key = generator.bytes(KEY_BYTES)
    # Each subject has a random number of its own: where another cannot be used, most are drawn as before.
    numbers = {subject: hashlib.blake2b(subject.encode(), key=key, digest_size=8).digest() for subject in subjects}
    for group in sorted({groups[subject] for subject in subjects}):
        members = sorted((subject for subject in subjects if groups[subject] == group), key=numbers.__getitem__)
        places |= {subject: (rank / len(members), numbers[subject]) for rank, subject in enumerate(members)}
    return sorted(subjects, key=places.__getitem__)


def _subjects_by_class(target: Target) -> dict[str, int]:
    """Subject → the highest class of its examples; all alike where the task has none."""
    groups: dict[str, int] = {}
    for example in target.examples:
        value = example.value if target.task == CLASSIFICATION else 0
        assert isinstance(value, int)
        groups[example.subject] = max(groups.get(example.subject, 0), value)
    return groups


def _check_official(tested: set[str], validated: set[str], learnt: set[str], seen: set[str]) -> None:
    if len(tested) < MIN_TEST_SUBJECTS or not learnt:
        raise SettingsError(
            f"the official lists leave {len(learnt)} usable subjects to learn from and {len(tested)} to test on: add "
            "the files of the others"
        )
    both = (tested & validated) | ((tested | validated) & learnt)
    if both:
        raise SettingsError(
            f"the official lists have {len(both)} subjects in two parts, {name_for_log(min(both))} the first: splits "
            "are by subject"
        )
    leaked = sorted(tested & seen)
    if leaked:
        raise SettingsError(
            f"{len(leaked)} of {len(tested)} official test subjects, {name_for_log(leaked[0])} the first, are among "
            "the scans that pretraining learns from: pretrain without them, or give finetune.allow_seen=true to test "
            "on them anyway"
        )


def _check_classes(target: Target, split: Split) -> None:
    """Raise SettingsError if a class is missing among those learnt from, validated or tested on."""
    parts = {"the test subjects": split.test}
    if split.validation:
        parts["the validation subjects"] = split.validation
    if target.task == MULTILABEL:
        # Some may be missing, but of one at least there must be an area under the ROC curve.
        for title, examples in parts.items():
            if all(len(set(values)) < 2 for values in zip(*(example.value for example in examples), strict=True)):
                raise SettingsError(
                    f"none of the classes {', '.join(target.classes)} is both present and absent among {title}: raise "
                    "finetune.num_test or finetune.num_validation, or give another split"
                )
    if target.task != CLASSIFICATION:
        return
    for title, trials in (("trial", split.trials), ("tuning trial", split.tuning)):
        for trial in trials:
            parts[f"the {trial.num_subjects} labelled subjects of {title} {trial.number}"] = trial.examples
    for title, examples in parts.items():
        counts = Counter(example.value for example in examples)
        missing = [name for number, name in enumerate(target.classes) if not counts[number]]
        if missing:
            there = ", ".join(f"{name} {counts[number]}" for number, name in enumerate(target.classes))
            raise SettingsError(
                f"class {missing[0]!r} is missing from {title} ({there}): raise finetune.num_labelled, "
                "finetune.num_test or finetune.num_validation, or give another split"
            )
