"""A run that is gone on with: the same settings, others that only say how it is executed, and more epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.pretraining.pretrain import _check_extension, pretrain
from raygenesis.settings import Settings, settings_from
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace.files import write_json
from raygenesis.workspace.manifest_files import STARTED
from raygenesis.workspace.workspace import Workspace
from tests.support.experiments import read_steps, without_timings
from tests.support.stores import StorePlan

SHAPE = (32, 32)


def settings_of(**pretraining: Any) -> Settings:
    schedule = {"base_width": 2, "batch_size": 8, "num_classification_epochs": 1, "num_joint_epochs": 2, "trackers": []}
    discovery = {"cube_shape": SHAPE, "scales": [{"extent_mm": SHAPE}], "num_coordinates": 2, "num_neighbours": 8}
    tree = {"discovery": discovery, "autoencoder": {"input_shape": SHAPE}, "pretraining": {**schedule, **pretraining}}
    return settings_from(tree)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    plan = StorePlan(references=1, coordinates=2, neighbours=8, held_out=3, scales=1, shape=SHAPE)
    plan.write(made.patterns)
    return made


@pytest.fixture(scope="module")
def whole(workspace: Workspace, ray_cluster: None) -> Path:
    """Three joint epochs in one go."""
    manifest = pretrain(workspace, settings_of(num_joint_epochs=3), "whole")
    assert manifest.counts.epochs == 4 and manifest.speed.cubes_per_s > 0
    return workspace.run("whole")


def assert_same(folder: Path, whole: Path) -> None:
    assert without_timings(read_steps(folder)) == without_timings(read_steps(whole))
    assert without_timings(read_metrics(folder)) == without_timings(read_metrics(whole))
    assert (folder / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()


@pytest.mark.slow
def test_an_extended_run_is_as_one_that_was_longer_from_the_start(workspace, whole, capsys):
    pretrain(workspace, settings_of(), "extended")
    with pytest.raises(WorkspaceError, match=r"num_joint_epochs was 2 and is now 3\): add --extend to go on"):
        pretrain(workspace, settings_of(num_joint_epochs=3), "extended")
    with pytest.raises(WorkspaceError, match=r"learning_rate was 0.001 and is now 0.01"):
        pretrain(workspace, settings_of(num_joint_epochs=3, learning_rate=0.01), "extended", extend=True)
    with pytest.raises(WorkspaceError, match=r"num_joint_epochs was 2 and is now 1"):
        pretrain(workspace, settings_of(num_joint_epochs=1), "extended", extend=True)
    capsys.readouterr()
    pretrain(workspace, settings_of(), "extended", extend=True)
    assert "nothing to do" in capsys.readouterr().out
    manifest = pretrain(workspace, settings_of(num_joint_epochs=3), "extended", extend=True)
    assert manifest.counts.epochs == 4
    assert_same(workspace.run("extended"), whole)
    # It is now what it would have been, and no run to be continued.
    capsys.readouterr()
    pretrain(workspace, settings_of(num_joint_epochs=3), "extended")
    assert "nothing to do" in capsys.readouterr().out


def test_there_must_be_a_run_to_extend_and_a_schedule_that_can_go_on(workspace):
    with pytest.raises(SettingsError, match=r"runs/nowhere holds no run to extend"):
        pretrain(workspace, settings_of(), "nowhere", extend=True)
    assert not workspace.run("nowhere").exists()


def test_stages_cannot_be_extended(workspace):
    folder = workspace.run("staged")
    folder.mkdir(parents=True)
    write_json(folder / STARTED, {})
    with pytest.raises(SettingsError, match=r"scale_stages=true divides the epochs .* cannot be extended: start anoth"):
        _check_extension(folder, settings_of(scale_stages=True).pretraining)
    _check_extension(folder, settings_of().pretraining)


@pytest.mark.slow
def test_a_cosine_cannot_be_extended(workspace, whole):
    with pytest.raises(SettingsError, match="schedule=cosine"):
        pretrain(workspace, settings_of(schedule="cosine"), "whole", extend=True)


@pytest.mark.slow
def test_how_a_run_is_executed_changes_nothing_in_it(workspace, whole, capsys):
    """From files instead of memory, with other checkpoints and trackers."""
    capsys.readouterr()
    chosen = {"num_joint_epochs": 3, "memory_gib": 0, "checkpoint_seconds": 0, "trackers": ["tensorboard"]}
    pretrain(workspace, settings_of(**chosen), "files")
    assert "read from files" in capsys.readouterr().out
    assert_same(workspace.run("files"), whole)
    assert list(workspace.run("files").glob("tensorboard/*"))
    pretrain(workspace, settings_of(num_joint_epochs=3, num_workers=2), "files")
    assert "nothing to do" in capsys.readouterr().out
