"""Runs that weights come from: found by name and by path, and their settings shared key by key, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raygenesis.errors import SettingsError
from raygenesis.settings import ArchiveSettings, Settings, as_yaml, load_settings, settings_from
from raygenesis.transfer.description import parse_description
from raygenesis.transfer.resolved import ResolvedTarget, resolve_target
from raygenesis.transfer.runs import Run, as_pretrained, runs_of
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.manifest import ArchiveCounts, ArchiveManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace
from tests.support.targets import write_sizes

CT, MR = [-1000.0, 400.0], None


def tree(window: Any = CT, side: int = 16, scan: int = 24) -> dict[str, Any]:
    shape = [side] * 3
    return {
        "intensity": {"window": window, "channel": 1},
        "discovery": {"cube_shape": shape, "scales": [{"extent_mm": shape}], "num_neighbours": 7},
        "autoencoder": {"input_shape": [scan] * 3}, "validation_fraction": 0.4,
        "archive": {"subject_pattern": "(sub-\\d+)"},
    }  # fmt: skip


def write_config(folder: Path, **changes: Any) -> Settings:
    settings = settings_from(tree(**changes))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(as_yaml(settings))
    return settings


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    write_sizes(tmp_path, 4)
    return Workspace.open(tmp_path / "workspace")


def resolved(
    workspace: Workspace, runs: list[Run], overrides: tuple[str, ...] = (), segments: bool = False, **description: Any
) -> ResolvedTarget:
    """A table of sizes, or label maps (the images themselves: nothing is decoded)."""
    given = {"task": "classification", "images": "images", "labels": "values.csv", "value_column": "size"}
    if segments:
        given = {"task": "segmentation", "images": "images", "labels": "images"}
    settings = load_settings("cpu-small", list(overrides))
    tree = parse_description(given | description, workspace.root.parent, "target")
    return resolve_target(tree, workspace, settings, runs)


def test_runs_are_found_by_name_by_path_and_by_their_file(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace.open(tmp_path / "other")
    ours, theirs = write_config(workspace.run("mine")), write_config(other.run("default"), window=MR)
    (other.run("default") / "encoder.safetensors").touch()
    (other.run("bare")).mkdir()
    starts = [
        "random", "mine", str(other.run("default")), f"x={other.run('default')}/encoder.safetensors",
        f"{other.run('bare')}", "w/genesis.pt",
    ]  # fmt: skip
    assert runs_of(starts, workspace) == [
        Run("mine", workspace, ours), Run("default", other, theirs), Run("x", other, theirs), Run("bare", other),
        Run("genesis"),
    ]  # fmt: skip


def test_a_target_is_prepared_as_the_run_s_archive_was_whatever_its_own_settings_say(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_config(workspace.run("mine"))
    other = Workspace.open(tmp_path / "other")
    write_config(other.run("theirs"))
    archive = ArchiveSettings(crop_to_body=True, spacing_mm=(2.0, 2.0, 2.0))
    manifest = ArchiveManifest(counts=ArchiveCounts(scans=1, volumes=1, subjects=1, failures=0), source_bytes=1)
    stage = Stage(ARCHIVE, other.archive, {"archive": archive.model_dump(mode="json")}, {})
    with stage.claimed():
        stage.finish(manifest)
    (mine,), (theirs,) = (runs_of([source], workspace) for source in ("mine", f"theirs={other.run('theirs')}"))
    preparation = resolved(workspace, [theirs]).form.preparation
    assert (preparation.crop_to_body, preparation.spacing_mm) == (True, (2.0, 2.0, 2.0))
    assert resolved(workspace, [mine]).form.preparation is None
    with pytest.raises(SettingsError, match=r"archive\.crop_to_body would be true as theirs .* and false as mine was"):
        resolved(workspace, [theirs, mine])
    given = ("archive.crop_to_body=false", "archive.spacing_mm=null")
    assert resolved(workspace, [theirs, mine], given).form.preparation is None


def test_each_of_several_pretrainings_is_a_run(workspace: Workspace) -> None:
    first, second = (write_config(workspace.run(name), side=side) for name, side in (("a", 16), ("b", 32)))
    assert runs_of(["ours=a,b", "random"], workspace) == [Run("a", workspace, first), Run("b", workspace, second)]
    with pytest.raises(SettingsError, match=r"would be \[16, 16, 16\] as a was pretrained and \[32, 32, 32\] as b was"):
        resolved(workspace, runs_of(["ours=a,b"], workspace), segments=True, classes=["x"])


def test_a_damaged_config_is_named(workspace: Workspace) -> None:
    write_config(workspace.run("mine"))
    path = workspace.run("mine") / "config.yaml"
    path.write_text("intensity: {windows: 3}")
    with pytest.raises(SettingsError, match=r"runs/mine/config\.yaml: unknown setting 'intensity.windows'"):
        runs_of(["mine"], workspace)


def test_what_was_not_given_is_as_the_run_has_it_key_by_key() -> None:
    run = Run("run", None, settings_from(tree()))
    overrides = ["intensity.channel=0", "discovery.num_neighbours=10", "finetune.num_steps=9"]
    found = as_pretrained(load_settings("cpu-small", overrides), run)
    assert found.intensity.window == tuple(CT) and found.discovery.cube_shape == (16, 16, 16)
    assert found.autoencoder.input_shape == (24, 24, 24) and found.validation_fraction == 0.4
    assert found.archive.subject_pattern == "(sub-\\d+)"
    assert (found.intensity.channel, found.discovery.num_neighbours, found.finetune.num_steps) == (0, 10, 9)
    whole = as_pretrained(load_settings("cpu-small", ["intensity={window: [0, 1]}", "validation_fraction=0.3"]), run)
    assert (whole.intensity.window, whole.intensity.channel, whole.validation_fraction) == ((0, 1), 0, 0.3)
    assert as_pretrained(found, Run("genesis")) == found


def test_a_run_given_by_path_decides_the_images(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace.open(tmp_path / "other")
    write_config(other.run("default"))
    form = resolved(workspace, runs_of(["random", str(other.run("default"))], workspace)).form
    assert form.intensity.window == tuple(CT) and form.input_shape == (24, 24, 24)


def runs(*changes: dict[str, Any]) -> list[Run]:
    return [Run("genesis"), *(Run(f"run-{n}", None, settings_from(tree(**each))) for n, each in enumerate(changes))]


@pytest.mark.parametrize(("change", "segments", "said"), [
    ({"window": MR}, False, "intensity.window would be [-1000.0, 400.0] as run-0 was pretrained and null as run-1 was"),
    ({"scan": 32}, False, "finetune.input_shape would be [24, 24, 24] as run-0 was pretrained and [32, 32, 32] as run"),
    ({"side": 32}, True, "finetune.input_shape would be [16, 16, 16] as run-0 was pretrained and [32, 32, 32] as run"),
])  # fmt: skip
def test_runs_of_other_images_are_refused_in_one_sentence(
    workspace: Workspace, change: dict[str, Any], segments: bool, said: str
) -> None:
    with pytest.raises(SettingsError) as error:
        resolved(workspace, runs({}, change), segments=segments, **({"classes": ["a"]} if segments else {}))
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    assert "on the command line" in str(error.value)


def test_what_is_given_or_does_not_decide_settles_it(workspace: Workspace) -> None:
    three = runs({}, {"window": MR, "side": 32, "scan": 32})
    given = resolved(workspace, three, ("intensity.window=[0, 9]", "finetune.input_shape=[8, 8, 8]")).form
    assert given.intensity.window == (0, 9) and given.input_shape == (8, 8, 8)
    by_target = resolved(workspace, three, window=[1, 2], settings={"input_shape": [40, 40, 40]}).form
    assert by_target.intensity.window == (1, 2) and by_target.input_shape == (40, 40, 40)
    assert resolved(workspace, runs({}, {"side": 32})).form.input_shape == (24, 24, 24)  # a whole scan is no cube
