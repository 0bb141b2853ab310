"""Who learns and who tests: by subject, in proportion, paired, nested, and never who pretraining has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.errors import SettingsError
from raygenesis.settings import FinetuneSettings
from raygenesis.transfer.examples import Example, Target
from raygenesis.transfer.split import Split, count_of, split_examples
from tests.support.cases import example


def chosen(**changed: Any) -> FinetuneSettings:
    return FinetuneSettings(**{"num_labelled": 3, "num_test": 4, "num_trials": 3, **changed})


def names(num: int) -> list[str]:
    return [f"s{n:02d}" for n in range(num)]


def target(examples: Iterable[Example], task: str = "segmentation", classes: tuple[str, ...] = ()) -> Target:
    return Target(task, 3, classes, tuple(examples))


def plain(num: int, split: str | None = None) -> Target:
    return target(example(name, split=split) for name in names(num))


def diagnosed(counts: dict[int, int]) -> Target:
    values = [value for value, count in counts.items() for _ in range(count)]
    return target(
        (example(name, value) for name, value in zip(names(len(values)), values, strict=True)),
        "classification", ("well", "ill", "worse")[: len(counts)],
    )  # fmt: skip


def subjects(examples: Iterable[Example]) -> set[str]:
    return {each.subject for each in examples}


def check_apart(split: Split) -> None:
    parts = [subjects(split.test), subjects(split.validation)]
    for trial in split.trials:
        own = [*parts, subjects(trial.examples)]
        assert sum(map(len, own)) == len(set.union(*own))


@given(st.integers(9, 30), st.integers(0, 3), st.integers(0, 99), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_parts_are_apart_and_have_all_examples_of_their_subjects(
    num: int, num_validation: int, seed: int, scans: int
) -> None:
    several = target(
        example(name, name=f"{name}-{n}") for number, name in enumerate(names(num)) for n in range(1 + number % scans)
    )
    split = split_examples(several, set(), chosen(num_validation=num_validation, num_labelled=[2, 3, "100%"]), seed)
    check_apart(split)
    for part in (split.test, split.validation, *(trial.examples for trial in split.trials)):
        assert set(part) == {each for each in several.examples if each.subject in subjects(part)}
    assert len(subjects(split.validation)) == num_validation
    assert {trial.num_subjects for trial in split.trials if trial.labelled == 3} == {3}
    assert split.num_pool_subjects == num - num_validation - len(subjects(split.test))
    assert {trial.num_subjects for trial in split.trials if trial.labelled == "100%"} == {split.num_pool_subjects}


def test_the_seed_decides_and_trials_differ() -> None:
    split = split_examples(plain(12), set(), chosen(), 0)
    assert split == split_examples(plain(12), set(), chosen(), 0)
    assert split.test != split_examples(plain(12), set(), chosen(), 1).test
    assert len({trial.examples for trial in split.trials}) > 1
    assert len({trial.seed for trial in split.trials}) == 3


def test_more_trials_leave_the_first_ones_as_they_were() -> None:
    few, many = (split_examples(plain(12), set(), chosen(num_trials=num), 0) for num in (2, 5))
    assert many.trials[:2] == few.trials and many.test == few.test


def test_a_grid_of_rates_is_tried_on_draws_of_its_own() -> None:
    grid = chosen(learning_rate=[0.001, 0.01], num_validation=2, num_labelled=[1, 3])
    split = split_examples(plain(30), set(), grid, 0)
    one = split_examples(plain(30), set(), chosen(num_validation=2, num_labelled=[1, 3]), 0)
    assert one.tuning == () and (one.trials, one.test, one.validation) == (split.trials, split.test, split.validation)
    assert [(trial.number, trial.num_subjects) for trial in split.tuning] == [(0, 1), (0, 3), (1, 1), (1, 3)]
    draws = [{trial.examples for trial in trials if trial.labelled == 3} for trials in (split.trials, split.tuning)]
    assert not draws[0] & draws[1]
    assert not {trial.seed for trial in split.tuning} & {trial.seed for trial in split.trials}
    others = subjects(split.test) | subjects(split.validation)
    assert all(not subjects(trial.examples) & others for trial in split.tuning)
    assert {each for trial in split.tuning for each in trial.examples} <= set(split.examples)
    more = split_examples(plain(30), set(), grid.model_copy(update={"num_trials": 5}), 0)
    assert more.tuning == split.tuning


def test_a_grid_of_rates_needs_subjects_to_validate_on() -> None:
    grid = chosen(learning_rate=[0.001, 0.01])
    with pytest.raises(
        SettingsError, match=r"^finetune\.learning_rate=\[0\.001, 0\.01\] needs subjects to validate on: "
    ):
        split_examples(plain(12), set(), grid, 0)
    official = split_examples(listed(train="abcde", validation="v", test="xyz"), set(), grid, 0)
    assert len(official.tuning) == 2
    idle = grid.model_copy(update={"mode": "knn"})  # nothing is trained
    assert split_examples(diagnosed({0: 10, 1: 10}), set(), idle, 0).tuning == ()


def test_more_labelled_contain_fewer_and_share_the_seed() -> None:
    split = split_examples(plain(30), set(), chosen(num_labelled=[2, 5, "50%", "100%"]), 0)
    for number in range(3):
        trials = [trial for trial in split.trials if trial.number == number]
        assert [trial.num_subjects for trial in trials] == [2, 5, 13, 26]
        assert all(subjects(a.examples) < subjects(b.examples) for a, b in pairwise(trials))
        assert len({trial.seed for trial in trials}) == 1
    alone = split_examples(plain(30), set(), chosen(num_labelled=5), 0)
    assert alone.trials == tuple(trial for trial in split.trials if trial.labelled == 5)


@pytest.mark.parametrize(("labelled", "num_subjects", "count"), [
    (5, 9, 5), ("10%", 200, 20), ("2.5%", 200, 5), ("1%", 20, 2), ("100%", 7, 7),
])  # fmt: skip
def test_shares_are_of_those_that_are_not_tested_on(labelled: int | str, num_subjects: int, count: int) -> None:
    assert count_of(labelled, num_subjects) == count


def test_classes_are_in_proportion_everywhere() -> None:
    split = split_examples(diagnosed({0: 40, 1: 20}), set(), chosen(num_test=12, num_validation=6, num_labelled=9), 0)
    counts = lambda part: Counter(each.value for each in part)  # noqa: E731
    assert counts(split.test) == {0: 8, 1: 4} and counts(split.validation) == {0: 4, 1: 2}
    assert all(counts(trial.examples) == {0: 6, 1: 3} for trial in split.trials)


def test_a_rare_class_is_in_every_draw() -> None:
    for seed in range(10):
        few = chosen(num_labelled=2, num_test=6)
        split = split_examples(diagnosed({0: 30, 1: 3}), set(), few, seed)
        assert all({each.value for each in trial.examples} == {0, 1} for trial in split.trials)


def test_a_class_that_is_missing_is_named_and_counted() -> None:
    with pytest.raises(SettingsError) as error:
        split_examples(diagnosed({0: 10, 1: 10, 2: 1}), set(), chosen(num_labelled=5), 0)
    assert str(error.value).startswith("class 'worse' is missing from ")
    assert "worse 0)" in str(error.value) and "raise finetune.num_labelled" in str(error.value)
    with pytest.raises(SettingsError, match=r"missing from the 2 labelled subjects of trial 0 \(.* 0.*\): raise"):
        split_examples(diagnosed({0: 10, 1: 10, 2: 10}), set(), chosen(num_labelled=2), 0)


def test_findings_that_all_or_none_of_the_tested_have_are_refused() -> None:
    findings = lambda of: target(  # noqa: E731
        (example(name, of(number)) for number, name in enumerate(names(12))), "multilabel", ("a", "b")
    )
    with pytest.raises(SettingsError, match=r"^none of the classes a, b is both present and absent among the test sub"):
        split_examples(findings(lambda number: (1, 0)), set(), chosen(), 0)
    assert split_examples(findings(lambda number: (number % 2, 0)), set(), chosen(num_test=8), 0).test


def test_seen_subjects_are_learnt_from_and_never_tested_on() -> None:
    seen = set(names(9))
    for seed in range(5):
        split = split_examples(plain(12), seen, chosen(), seed)
        assert subjects(split.test) == set(names(12)[9:])  # num_test=4 is an upper bound
        assert split.num_pool_subjects == split.num_seen == 9
    allowed = split_examples(plain(12), seen, chosen(allow_seen=True), 0)
    assert allowed == split_examples(plain(12), set(), chosen(), 0)


@pytest.mark.parametrize(("num", "num_seen", "num_validation"), [(12, 11, 0), (4, 0, 0), (6, 0, 2), (3, 0, 0)])
def test_too_few_subjects_is_one_sentence(num: int, num_seen: int, num_validation: int) -> None:
    with pytest.raises(SettingsError) as error:
        split_examples(plain(num), set(names(num_seen)), chosen(num_validation=num_validation), 0)
    said = str(error.value)
    assert f"num_labelled=3, finetune.num_test=4 and finetune.num_validation={num_validation} cannot be met" in said
    assert f"{num} labelled subjects, {num - num_seen} of them unseen" in said and "\n" not in said


def test_five_subjects_are_enough_for_three_labelled_and_two_tested() -> None:
    split = split_examples(plain(5), set(), chosen(), 0)
    assert len(split.test) == 2 and split.num_pool_subjects == 3


def listed(**parts: str) -> Target:
    """Of each part its subjects, a letter each; `other` are on no list."""
    return target(
        example(name, split=None if part == "other" else part) for part, members in parts.items() for name in members
    )


def test_official_lists_are_kept_whatever_the_settings() -> None:
    for seed in range(3):
        split = split_examples(listed(train="abcde", validation="v", test="xyz", other="o"), set("ab"), chosen(), seed)
        assert (subjects(split.test), subjects(split.validation)) == (set("xyz"), {"v"})
        assert split.num_pool_subjects == 6 and all(trial.num_subjects == 3 for trial in split.trials)
        check_apart(split)
    draws = [split_examples(listed(train="abcdefgh", test="xyz"), set(), chosen(), seed).trials for seed in (0, 1)]
    assert [trial.examples for trial in draws[0]] != [trial.examples for trial in draws[1]]


def test_official_test_subjects_that_were_seen_are_refused() -> None:
    official = listed(train="abcde", test="xyz")
    with pytest.raises(SettingsError, match=r"^2 of 3 official test subjects, x the first, .*finetune\.allow_seen=tru"):
        split_examples(official, set("axy"), chosen(), 0)
    split = split_examples(official, set("axy"), chosen(allow_seen=True), 0)
    assert subjects(split.test) == set("xyz") and split.num_seen == 0
    assert split_examples(official, set("ab"), chosen(), 0).num_seen == 2


@pytest.mark.parametrize("parts", [{"train": "abcx"}, {"train": "abc", "validation": "x"}])
def test_a_subject_in_two_official_parts_is_named(parts: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="1 subjects in two parts, x the first: splits are by subject"):
        split_examples(listed(**parts, test="xy"), set(), chosen(), 0)


def test_more_labelled_than_a_list_has_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"finetune\.num_labelled=9 is more than the 5 labelled subjects"):
        split_examples(listed(train="abcde", test="xyz"), set(), chosen(num_labelled=9), 0)


@pytest.mark.parametrize("parts", [{"train": 5}, {"test": 5}, {"train": 5, "test": 1}, {"train": 5, "validation": 5}])
def test_a_list_that_leaves_nobody_to_learn_from_or_test_on_is_refused(parts: dict[str, int]) -> None:
    examples = [example(f"{part}{n}", split=part) for part, count in parts.items() for n in range(count)]
    with pytest.raises(SettingsError, match=r"the official lists leave \d usable subjects to learn from and \d"):
        split_examples(target(examples), set(), chosen(), 0)


def test_a_list_without_validation_gives_some_of_those_it_lets_learn_from() -> None:
    examples = [example(f"{part}{n}", split=part) for part in ("train", "test") for n in range(6)]
    split = split_examples(target(examples), set(), chosen(num_validation=2, patience=3), 0)
    check_apart(split)
    assert len(split.validation) == 2 and {each.split for each in split.validation} == {"train"}
    assert len(split.test) == 6 and split.num_pool_subjects == 4


def test_patience_without_anybody_to_validate_on_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"finetune.patience=3 needs subjects to validate on"):
        split_examples(plain(12), set(), chosen(patience=3), 0)
