"""Descriptions of targets: read, and every mistake in them one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raygenesis.errors import ScanError, SettingsError
from raygenesis.settings import IntensitySettings, load_settings, settings_from
from raygenesis.transfer.cases import form_of
from raygenesis.transfer.description import (
    Description,
    description_of,
    parse_description,
    read_description,
    read_target,
    settings_for,
)
from raygenesis.transfer.targets.layouts import LAYOUTS

MAPS = {"task": "segmentation", "images": "i", "labels": "l"}
TABLE = {"task": "classification", "images": "i", "labels": "t.csv", "value_column": "dx"}
PUBLIC = {"layout": "brats", "folder": "b"}


def describe(tree: dict[str, Any], folder: Path = Path("/data")) -> Description:
    return parse_description(tree, folder, "target.yaml")


def test_paths_are_meant_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "target.yaml"
    path.write_text(yaml.safe_dump({**TABLE, "images": "/abs/i", "labels": "../t.csv", "split": "~/s.csv"}))
    found = read_description(path)
    assert (found.images, found.labels, found.split) == (
        Path("/abs/i"), tmp_path / "../t.csv", Path("/home/me/s.csv")
    )  # fmt: skip
    path.write_text(yaml.safe_dump(PUBLIC))
    assert read_description(path).folder == tmp_path / "b"
    monkeypatch.chdir(tmp_path)
    assert read_description(Path("target.yaml")).folder == tmp_path / "b"


@pytest.mark.parametrize(("text", "said"), [
    (b"task: [", r"target\.yaml is not valid YAML: "), (b"\xff\xfe\x00", r"target\.yaml is not valid YAML: "),
    (b"", r"target\.yaml must hold a mapping that describes a target, and holds nothing"),
    (b"- a\n", r"target\.yaml must hold a mapping that describes a target, and holds a list"),
])  # fmt: skip
def test_a_file_that_is_no_description_is_one_sentence(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "target.yaml").write_bytes(text)
    with pytest.raises(SettingsError, match=said) as error:
        read_description(tmp_path / "target.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(SettingsError, match=r"target .*other\.yaml cannot be read: No such file"):
        read_description(tmp_path / "other.yaml")


@pytest.mark.parametrize(("tree", "said"), [
    ({**MAPS, "imagess": "x"}, "unknown setting 'imagess': did you mean 'images'?"),
    ({"task": "segmentation"}, "images and labels missing: give `task`, `images` and `labels`, or a `layout`"),
    ({}, "task and images and labels missing: give `task`, `images` and `labels`, or a `layout`"),
    ({**MAPS, "task": "detection"}, "task='detection' is not allowed: input should be 'segmentation', "
                                    "'classification' or 'regression'"),
    ({**MAPS, "ndim": 4}, "ndim=4 is not allowed: input should be 2 or 3"),
    ({**MAPS, "window": [400, -1000]}, "window: [400.0, -1000.0] must be [low, high] with low < high"),
    ({**MAPS, "subject_pattern": "sub-("}, "subject_pattern: 'sub-(' is not a regular expression: "),
    ({**MAPS, "classes": ["a", "a"]}, "classes: ['a', 'a'] must be names, each another"),
    ({**MAPS, "classes": []}, "classes: [] must be names, each another"),
    ({**MAPS, "symmetric_axes": ["x", "x"]}, "symmetric_axes: ['x', 'x'] names an axis twice: leave one out"),
    ({**MAPS, "symmetric_axes": ["left"]}, "symmetric_axes.0='left' is not allowed: input should be 'x', 'y' or 'z'"),
    ({**MAPS, "folder": "f"}, "folder and options belong to a `layout`: leave them out, or give one"),
    ({**MAPS, "options": {"fold": 1}}, "folder and options belong to a `layout`"),
    ({**TABLE, "value_column": None}, "value_column is missing: name the column of t.csv that holds"),
    ({"layout": "bratz", "folder": "f"}, "layout: 'bratz' is unknown: choose one of luna16, "),
    ({"layout": "brats"}, "layout: brats needs `folder`"),
    ({**PUBLIC, "images": "i", "classes": ["x"]}, "layout: brats brings its own classes, images"),
])  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_the_file_and_the_key(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        describe(tree)
    assert str(error.value).startswith(f"target.yaml: {said}") and "\n" not in str(error.value)


def test_two_folders_describe_a_segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = description_of(None, Path("i"), Path("l"), settings_from({}).ndim)
    assert (found.task, found.images, found.labels, found.ndim) == ("segmentation", tmp_path / "i", tmp_path / "l", 3)
    flat = settings_from({"discovery": {"cube_shape": [64, 64], "scales": [{"extent_mm": [64, 64]}]},
                          "autoencoder": {"input_shape": [64, 64]}})  # fmt: skip
    assert description_of(None, Path("i"), Path("l"), flat.ndim).ndim == 2


@pytest.mark.parametrize("given", [(None, None, None), (None, Path("i"), None), (Path("t"), Path("i"), Path("l"))])
def test_neither_or_both_ways_to_describe_are_refused(given: tuple[Any, ...]) -> None:
    with pytest.raises(SettingsError, match=r"give --target, a YAML file .*, or --images and --labels"):
        description_of(*given, 3)


def test_a_description_of_a_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    for name in ("p1-a", "p2-b", "p2-c"):
        (tmp_path / "i" / f"{name}.nii").write_bytes(b"never decoded")
    (tmp_path / "t.csv").write_text("scan,dx\np1-a,ill\np2-b,well\np2-c,well\n")
    tree = {**TABLE, "key_column": "scan", "ndim": 2}
    target = read_target(describe({**tree, "classes": ["well", "ill"]}, tmp_path), r"(p\d)")
    assert [example.value for example in target.examples] == [1, 0, 0] and target.ndim == 2
    assert [example.subject for example in target.examples] == ["p1", "p2", "p2"]
    own = read_target(describe({**tree, "subject_pattern": r"-(.)"}, tmp_path), r"(p\d)")
    assert [example.subject for example in own.examples] == ["a", "b", "c"] and own.classes == ("ill", "well")


@pytest.fixture
def adrenals(tmp_path: Path) -> Path:
    arrays = {f"{part}_images": np.zeros((3, 8, 8, 8), np.uint8) for part in ("train", "val", "test")}
    np.savez(tmp_path / "a.npz", **arrays, **{f"{part}_labels": np.array([[0], [1], [1]]) for part in
             ("train", "val", "test")})  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_the_files_of_a_layout_are_missing_it_is_said_whose_they_are(tmp_path: Path, layout: str) -> None:
    source = LAYOUTS[layout].source
    for folder in (".", "nowhere"):
        with pytest.raises(ScanError) as error:
            read_target(describe({"layout": layout, "folder": folder}, tmp_path))
        assert str(error.value).endswith(f"({source})") and "\n" not in str(error.value)


def test_a_layouts_options_reach_it(adrenals: Path) -> None:
    tree = {"layout": "medmnist", "folder": "."}
    assert read_target(describe(tree, adrenals)).classes == ("normal", "abnormal")
    named = read_target(describe({**tree, "options": {"classes": ["small", "large"]}}, adrenals))
    assert tuple(named.classes) == ("small", "large") and len(named.examples) == 9


def test_an_unknown_option_is_named_with_those_that_there_are(adrenals: Path) -> None:
    with pytest.raises(SettingsError, match=r"options of layout medmnist: 'fold' is unknown; there are classes"):
        read_target(describe({"layout": "medmnist", "folder": ".", "options": {"fold": 1}}, adrenals))
    with pytest.raises(SettingsError, match=r"options of layout lits: 'fold' is unknown; there are none"):
        read_target(describe({"layout": "lits", "folder": ".", "options": {"fold": 1}}, adrenals))


def test_a_target_changes_settings_of_finetune_but_not_what_was_given_on_the_command_line() -> None:
    tree = {**MAPS, "settings": {"num_labelled": [2, "50%"], "num_trials": 4}}
    after = settings_for(describe(tree), load_settings("cpu-small", ["finetune.num_test=7", "finetune.num_trials=6"]))
    assert after.finetune.num_labelled == (2, "50%") and after.finetune.num_test == 7
    assert after.finetune.num_trials == 6 and after.finetune.batch_size == 4


def test_a_window_and_empty_masks_are_the_targets(adrenals: Path) -> None:
    tree = {"layout": "medmnist", "folder": "."}
    assert read_target(describe({**tree, "window": [-1, 2]}, adrenals)).window == (-1, 2)
    assert not read_target(describe(tree, adrenals)).keeps_empty


def test_sides_that_do_not_matter_reach_the_form_of_the_cases(adrenals: Path) -> None:
    tree = {"layout": "medmnist", "folder": ".", "symmetric_axes": ["z", "x"]}
    target = read_target(describe(tree, adrenals))
    assert target.symmetric_axes == ("x", "z")
    assert form_of(target, (8, 8, 8), None, IntensitySettings()).symmetric_axes == ("x", "z")


def test_an_image_of_two_dimensions_has_no_third_axis(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    for name in ("a", "b"):
        (tmp_path / "i" / f"{name}.png").write_bytes(b"never decoded")
    (tmp_path / "t.csv").write_text("image,dx\na,ill\nb,well\n")
    flat = {**TABLE, "ndim": 2}
    with pytest.raises(SettingsError, match=r"^symmetric_axes: the target's images are 2D and have no axis z: leave"):
        read_target(describe({**flat, "symmetric_axes": ["z"]}, tmp_path))
    assert read_target(describe({**flat, "symmetric_axes": ["x"]}, tmp_path)).symmetric_axes == ("x",)


def test_an_option_of_another_type_is_one_sentence(adrenals: Path) -> None:
    with pytest.raises(SettingsError, match=r"options of layout medmnist: classes=3 is not allowed"):
        read_target(describe({"layout": "medmnist", "folder": ".", "options": {"classes": 3}}, adrenals))


def test_a_layout_brings_its_input_shape_unless_another_is_given() -> None:
    assert settings_for(describe(PUBLIC), settings_from({})).finetune.input_shape == LAYOUTS["brats"].input_shape
    own = settings_for(describe({**PUBLIC, "settings": {"input_shape": [16, 16, 16]}}), settings_from({}))
    assert own.finetune.input_shape == (16, 16, 16)
    kept = settings_for(describe(PUBLIC), settings_from({"finetune": {"input_shape": [8, 8, 8]}}))
    assert kept.finetune.input_shape == (8, 8, 8)


@pytest.mark.parametrize(("tree", "said"), [
    ({"settings": {"num_labeled": 3}}, r"finetune\.num_labeled.*did you mean 'finetune\.num_labelled'"),
    ({"settings": {"num_trials": 1}}, r"finetune\.num_trials=1 is not allowed"),
])  # fmt: skip
def test_settings_of_a_target_are_checked(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        settings_for(describe({**MAPS, **tree}), settings_from({}))
