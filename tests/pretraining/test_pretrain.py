"""Pretraining from a store to exported weights: what each kind of task leaves behind, and how it says that it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raygenesis import load_network, load_unet
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.pretraining.pretrain import _warnings, pretrain
from raygenesis.pretraining.stores import check_pretext, pretext_task, with_store_settings
from raygenesis.settings import load_settings, settings_from
from raygenesis.training import precision
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace.artifacts import PATTERNS
from raygenesis.workspace.files import read_json
from raygenesis.workspace.manifest import StoreCounts, StoreManifest
from raygenesis.workspace.workspace import Workspace
from tests.support.planar import SHAPE, ramp, settings_of
from tests.support.stores import StorePlan


def store_of(shape: tuple[int, ...]) -> StoreManifest:
    """The manifest of a store of one reference, two coordinates and 12 neighbours."""
    counts = StoreCounts(
        patterns=24, validation=8, volumes=12, parts=1, failures=0, references=1, coordinates=2, neighbours=12
    )
    return StoreManifest(counts=counts, cube_shape=shape, raw_bytes=0)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    plan = {"coordinates": 2, "neighbours": 12, "held_out": 4, "scales": 1, "shape": SHAPE, "cube": ramp}
    StorePlan(references=1, **plan).write(made.patterns)
    StorePlan(references=0, **plan).write(made.crops)
    return made


def test_a_store_that_is_not_there_is_named_with_the_verb_that_makes_it(tmp_path: Path) -> None:
    for pretext, folder, verb in (("semantic-genesis", "patterns", "discover"), ("rotation", "crops", "crop")):
        with pytest.raises(WorkspaceError, match=f"{folder} is not there or not finished: run `raygenesis {verb}`"):
            pretrain(Workspace(tmp_path), settings_of(pretext=pretext))
    assert not any(tmp_path.iterdir())


def test_more_than_the_crops_hold_is_refused_with_the_remedy(workspace: Workspace) -> None:
    with pytest.raises(SettingsError, match=r"num_coordinates=3 is more than the 2 .* crop again with discovery.num_"):
        pretrain(workspace, settings_of(pretext="rotation", num_coordinates=3).model_copy(), "refused")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_puzzle_on_random_crops_leaves_an_encoder_without_a_decoder(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = pretrain(workspace, settings_of(pretext="rubiks-cube"), "cube")
    folder = workspace.run("cube")
    assert manifest.chance == 1 / 24 and manifest.store == "crops" and list(manifest.inputs) == ["crops"]
    assert manifest.restoration_mse is None and 0 <= manifest.accuracy <= 1
    # Compared with other tasks by the discovered patterns, which it has not learnt from.
    assert 0 < manifest.retrieval <= 1 and 0 < manifest.retrieval_untrained <= 1
    assert manifest.retrieval != manifest.retrieval_untrained
    network = load_network(folder)
    assert network.decoder is None and network.architecture.head == "rubiks-cube"
    assert load_unet(folder, num_out=2)(torch.rand(2, 1, *SHAPE)).shape == (2, 2, *SHAPE)
    said = capsys.readouterr().out
    assert "rubiks-cube: 24 crops, 8 held out, 69.9 KiB in memory; 24 classes; 1 worker(s)" in said
    assert "holds no decoder" in said
    assert {row["phase"] for row in read_metrics(folder)} == {"classification"}
    assert "| pretext | rubiks-cube |" in (folder / "model-card.md").read_text()
    # What `auto` was is recorded, and another machine's `auto` is the same run.
    assert (
        manifest.settings["pretraining"]["precision"]
        == load_settings(str(folder / "config.yaml")).pretraining.precision
    )
    monkeypatch.setattr(precision, "fastest_precision", lambda device: "bf16")
    for asked in ("auto", manifest.settings["pretraining"]["precision"]):
        assert pretrain(workspace, settings_of(pretext="rubiks-cube", precision=asked), "cube") == manifest
    with pytest.raises(WorkspaceError, match=r"pretraining\.precision was 'fp32' and is now 'bf16'"):
        pretrain(workspace, settings_of(pretext="rubiks-cube", precision="bf16"), "cube")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_training_that_collapses_says_so_in_the_log_the_manifest_and_the_report(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate that no network stands: its first step makes weights of 10,000, after which each voxel is
    answered by 0 or 1, and even the best of such answers is worse than the mean value of a cube.
    """
    settings = settings_of(pretext="models-genesis", learning_rate=1e4, num_joint_epochs=6)
    manifest = pretrain(workspace, settings, "collapsed")
    said = capsys.readouterr().out
    assert "nothing is learnt from restoration" in said and "warning after epoch" in said
    (told,) = (sentence for sentence in manifest.warnings if "nothing is learnt from restoration" in sentence)
    best = min(row["val_restoration"] for row in read_metrics(workspace.run("collapsed"))[-5:])
    assert f"the held-out error was {best:.4f} at best" in told and "a cube's mean value everywhere gives 0.0" in told
    assert all(sentence in said for sentence in manifest.warnings)
    assert read_json(workspace.run("collapsed") / "manifest.json")["warnings"] == list(manifest.warnings)

    from raygenesis.report.report import report

    page = report(workspace, settings).read_text()
    # The page wraps nothing and escapes little: the words are in it as they are.
    assert all(sentence.replace("'", "&#39;") in page for sentence in manifest.warnings)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_contrast_alone_leaves_an_encoder_and_its_figures_in_the_manifest_the_card_and_the_report(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(pretext="pattern-contrast", average_decay=0.5, num_joint_epochs=2)
    manifest = pretrain(workspace, settings, "contrast")
    said = capsys.readouterr().out
    assert manifest.accuracy is manifest.chance is manifest.restoration_mse is manifest.cross_restoration_mse is None
    assert manifest.counts.classes == 0 and min(manifest.contrast, manifest.contrast_chance) > 0
    assert f"separation of classes {manifest.separation:.3f}" in said and "classes; 1 worker(s)" not in said
    rows = read_metrics(workspace.run("contrast"))
    assert {row["phase"] for row in rows} == {"contrast"} and len(rows) == 4
    assert manifest.separation == max(row["val_separation"] for row in rows)
    card = (workspace.run("contrast") / "model-card.md").read_text()
    assert f"| contrast | {manifest.contrast} |" in card and "| projection_size | 128 |" in card
    network = load_network(workspace.run("contrast"))
    assert network.decoder is network.head is None and network.projection is not None
    assert load_unet(workspace.run("contrast"), num_out=2)(torch.rand(2, 1, *SHAPE)).shape == (2, 2, *SHAPE)

    from raygenesis.report.report import report

    page = report(workspace, settings).read_text()
    assert "Its contrast of pairs is" in page and "Separation of classes" in page


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ["the held-out error is 0.0600 and always answering with the mean training cube gives 0.0500"]),
        ({"lambda_rec": 0}, []),  # nor is it meant to
        ({"num_joint_epochs": 0}, []),
    ],
)
def test_an_answer_no_better_than_the_mean_training_cube_is_told_at_the_end(
    settings: dict[str, Any], told: list[str]
) -> None:
    """Too early for what every epoch is judged by."""
    task = pretext_task(settings_of(**settings).pretraining, 0, store_of(SHAPE))
    row = {
        "phase": task.phase(task.num_epochs - 1), "val_restoration": 0.06, "val_blank": 0.08, "val_identity": 0.2,
        "val_accuracy": 0.9, "val_embedding_variance": 0.5, "val_effective_rank": 9.0,
    }  # fmt: skip
    found = _warnings(task, [row], 0.06, 0.05)
    assert len(found) == len(told) and all(words in sentence for words, sentence in zip(told, found, strict=True))


def test_cubes_of_a_store_that_do_not_fit_the_network_are_refused() -> None:
    """The store's, whatever the settings say now."""
    with pytest.raises(SettingsError, match=r"network=resnet18 needs .* of 32, and the store's are \(24, 24\)"):
        pretext_task(settings_of(network="resnet18").pretraining, 0, store_of((24, 24)))


def test_a_run_keeps_what_its_store_was_made_with_and_not_what_the_preset_of_the_day_says(workspace: Workspace) -> None:
    """A target is read as the run's settings say."""
    store = PATTERNS.require(workspace.patterns)
    intensity = store.settings["intensity"] | {"window": [-1000.0, 400.0], "channel": 1}
    store = replace(store, settings={**store.settings, "intensity": intensity, "validation_fraction": 0.4})
    chosen = settings_of(num_joint_epochs=7)
    taken = with_store_settings(chosen, store)
    assert taken.intensity.window == (-1000, 400) and taken.intensity.channel == 1
    assert taken.validation_fraction == 0.4 and taken.pretraining == chosen.pretraining
    assert [scale.extent_mm for scale in taken.discovery.scales] == [SHAPE]
    # The same again is no mistake, and something else is.
    tree = taken.model_dump(mode="json")
    again = with_store_settings(settings_from(tree, frozenset({"intensity.window", "validation_fraction"})), store)
    assert again.model_dump() == taken.model_dump()
    tree["intensity"]["window"] = [0, 80]
    told = r"intensity\.window=\[0\.0, 80\.0\], but the cubes in the store were made with \[-1000\.0, 400\.0\]: leave"
    with pytest.raises(SettingsError, match=told):
        with_store_settings(settings_from(tree, frozenset({"intensity.window"})), store)
    assert with_store_settings(settings_from(tree), store).model_dump() == taken.model_dump()  # of a preset


def test_settings_under_which_no_cube_can_be_corrupted_are_refused_before_any_work() -> None:
    tree = settings_of(pretext="models-genesis").model_dump()
    tree["discovery"] |= {"cube_shape": (8, 8)}
    with pytest.raises(SettingsError, match=r"cubes of \(8, 8\) are too small for the painting of 'models-genesis'"):
        refused = settings_from(tree)
        check_pretext(refused.pretraining, refused.discovery)
    other = settings_from(tree | {"pretraining": {"pretext": "auto-encoder"}})
    check_pretext(other.pretraining, other.discovery)
