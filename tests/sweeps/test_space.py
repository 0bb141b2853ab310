"""SPACE.yaml: what it can say, and one sentence for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from raygenesis.errors import SettingsError
from raygenesis.settings import load_settings
from raygenesis.sweeps.records import SweepTrial
from raygenesis.sweeps.space import Range, Space, at_point, default_space, in_trial, read_space
from raygenesis.sweeps.trial import SweepSetup
from raygenesis.workspace.manifest import PatternsManifest, StoreCounts


def counts_of(neighbours: int, coordinates: int) -> StoreCounts:
    number = neighbours * coordinates
    return StoreCounts(
        patterns=number, validation=0, volumes=neighbours, parts=1, failures=0, references=1, coordinates=coordinates,
        neighbours=neighbours,
    )  # fmt: skip


COUNTS = counts_of(24, 8)


def space_of(folder: Path, content: Any, search: str = "grid") -> Space:
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_space(path, search)


def refusal(folder: Path, content: Any, search: str = "grid") -> str:
    with pytest.raises(SettingsError) as error:
        space_of(folder, content, search)
    assert "\n" not in str(error.value) and str(folder / "space.yaml") in str(error.value)
    return str(error.value)


def test_choices_are_values_of_their_setting(tmp_path: Path) -> None:
    space = space_of(tmp_path, "pretraining.learning_rate: [1e-4, 1, 1.0]\npretraining.corruption: [none, null]\n")
    assert space.axes == {"learning_rate": (1e-4, 1.0), "corruption": ("none", None)}  # 1e-4 is text in YAML 1.1
    assert space.size == 4 and len(list(space.corners())) == 4
    assert next(space.corners()) == {"learning_rate": 1e-4, "corruption": "none"}
    assert space.tree == {"pretraining.learning_rate": [1e-4, 1.0], "pretraining.corruption": ["none", None]}


def test_ranges_keep_whole_numbers_whole(tmp_path: Path) -> None:
    content = """
pretraining.base_width: {low: 2, high: 17, step: 4}
pretraining.num_neighbours: {low: 4, high: 24}
pretraining.learning_rate: {low: 1e-4, high: 1e-2, log: true}
pretraining.batch_size: [8]
"""
    space = space_of(tmp_path, content, "tpe")
    assert space.axes["base_width"] == Range(2, 14, step=4) and isinstance(space.axes["base_width"].low, int)
    assert space.axes["num_neighbours"] == Range(4, 24)
    assert space.axes["learning_rate"] == Range(1e-4, 1e-2, log=True)
    assert space.varied == ["base_width", "num_neighbours", "learning_rate"] and space.size is None
    assert len(list(space.corners())) == 2**3
    sized = {"pretraining.base_width": {"low": 2, "high": 17, "step": 4}, "pretraining.patience": {"low": 1, "high": 5}}
    assert space_of(tmp_path, sized, "random").size == 4 * 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "must map settings to lists of values or ranges"),
        ("- 1", "must map settings"),
        ("a: [", "is not valid YAML"),
        ("pretraining.lerning_rate: [1]", "unknown setting 'pretraining.lerning_rate': did you mean 'pretraining.l"),
        ("lambda_cls: [1]", "unknown setting 'lambda_cls': known here are seed"),
        ("1: [1]", "unknown setting '1'"),
        ("pretraining: [1]", "pretraining is a section: name one of its settings, as in pretraining.pretext"),
        ("discovery.num_neighbours: [4]", "cannot vary within a sweep: all points share one pattern store"),
        ("archive.chunk: [32, 64]", "archive.chunk cannot vary"),
        ("finetune.num_steps: [1, 2]", "finetune.num_steps cannot vary"),
        ("seed: [0, 1]", "sweep.num_seeds trains each point with several seeds"),
        ("pretraining.num_workers: [1, 2]", "a trial is one process"),
        ("pretraining.lambda_cls: []", "pretraining.lambda_cls has no values"),
        ("pretraining.lambda_cls: 0.1", "pretraining.lambda_cls=0.1: give a list of values, or a range"),
        ("pretraining.lambda_cls: [-1]", "pretraining.lambda_cls=-1 is not allowed: input should be greater than or"),
        ("pretraining.network: [unet, vit]", "pretraining.network='vit' is not allowed: input should be 'unet'"),
        ("pretraining.batch_size: [[8]]", "pretraining.batch_size=[8] is not allowed"),
        ("pretraining.lambda_cls: {low: 0, high: 1}", "is a range, and a grid would have no end"),
    ],
)
def test_what_is_no_space_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    assert words in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("given_range", "words"),
    [
        ("{low: 1}", "has no high"),
        ("{}", "has no low and no high"),
        ("{low: 1, high: 2, stride: 3}", "knows no 'stride'"),
        ("{low: 2, high: 2}", "low=2.0 must be below high=2.0"),
        ("{low: 1, high: 2, log: yes please}", "log='yes please' must be true or false"),
        ("{low: 0, high: 2, log: true}", "log: true takes no step and begins above 0"),
        ("{low: 1, high: 2, log: true, step: 1}", "takes no step"),
        ("{low: 1, high: 2, step: 0}", "its step must be a number above 0"),
        ("{low: -1, high: 2}", "pretraining.lambda_cls=-1 is not allowed"),
    ],
)
def test_what_is_no_range_is_one_sentence(tmp_path: Path, given_range: str, words: str) -> None:
    assert words in refusal(tmp_path, f"pretraining.lambda_cls: {given_range}", "random")


def test_ranges_are_for_numbers(tmp_path: Path) -> None:
    assert "takes no numbers between" in refusal(tmp_path, "pretraining.corruption: {low: a, high: b}", "random")
    assert "whole number" in refusal(tmp_path, "pretraining.batch_size: {low: 2, high: 8, step: 1.5}", "random")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--space .*missing.yaml cannot be read: No such file"):
        read_space(tmp_path / "missing.yaml", "grid")


@given_settings(deadline=None)
@given(low=st.integers(1, 50), width=st.integers(1, 50), step=st.integers(1, 60))
def test_a_range_with_steps_ends_on_a_step(
    tmp_path_factory: pytest.TempPathFactory, low: int, width: int, step: int
) -> None:
    tree = {"pretraining.patience": {"low": low, "high": low + width, "step": step}}
    space = space_of(tmp_path_factory.mktemp("space"), tree, "random")
    axis = space.axes["patience"]
    assert axis.low == low and (axis.high - low) % step == 0 and low + width - step < axis.high <= low + width
    assert space.size == len(range(low, low + width + 1, step))


def test_the_default_space_is_two_weights_and_halves_of_the_store() -> None:
    assert [tuple(point.values()) for point in default_space(COUNTS).corners()] == [
        (weight, k, c) for weight in (0.01, 0.1) for k in (12, 24) for c in (4, 8)
    ]
    assert default_space(counts_of(1, 1)).size == 2


def test_a_point_is_trained_briefly_and_kept_at_full_length() -> None:
    settings = load_settings("cpu-small", ["pretraining.num_workers=2", "sweep.num_joint_epochs=3"])
    point = {"learning_rate": 0.02, "num_neighbours": 12}
    kept, tried = (at_point(settings, each, COUNTS) for each in (point, in_trial(point, settings.sweep)))
    assert kept.pretraining.learning_rate == tried.pretraining.learning_rate == 0.02
    assert (kept.pretraining.num_joint_epochs, tried.pretraining.num_joint_epochs) == (15, 3)
    assert (kept.pretraining.num_workers, tried.pretraining.num_workers) == (2, 1)
    store = PatternsManifest(counts=COUNTS, cube_shape=settings.discovery.cube_shape, raw_bytes=0)
    task = SweepSetup(settings, store, num_gpus=0, num_threads=1, most_epochs=3).task(SweepTrial(point, 7))
    assert (task.seed, task.settings.num_joint_epochs, kept.seed) == (7, 3, 0)
    # What the space itself varies is not overwritten.
    assert in_trial({"num_joint_epochs": 9}, settings.sweep)["num_joint_epochs"] == 9
