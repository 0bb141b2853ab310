"""A sweep from a store to its table and best preset: what it keeps, refuses, stops early, and survives."""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import tune

from raygenesis.cluster import capacity, environment, joining
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.report.report import report
from raygenesis.settings import load_settings, settings_from
from raygenesis.sweeps import sweep as module
from raygenesis.sweeps import trials
from raygenesis.sweeps.queue import Queue
from raygenesis.sweeps.records import FAILED, RUNNING, WHOLE, SweepTrial, TrialRecord
from raygenesis.sweeps.sweep import sweep
from raygenesis.sweeps.trial import PROXY, RECORD
from raygenesis.training.experiment import TrainingError
from raygenesis.workspace.files import read_json
from raygenesis.workspace.manifest import SweepCounts
from raygenesis.workspace.workspace import Workspace
from tests.support.planar import SHAPE, ramp, settings_of
from tests.support.stores import StorePlan
from tests.support.sweeps import PLAN, swept, trial_files
from tests.support.targets import SHAPE as SHAPE_3D
from tests.support.targets import write_boxes, write_catalogue


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    StorePlan(**PLAN, shape=SHAPE, cube=ramp).write(made.patterns)
    return made


def space_file(folder: Path, space: Mapping[str, Any]) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(dict(space)))
    return path


@pytest.mark.usefixtures("ray_cluster")
def test_the_default_space_is_ranked_without_cropping_and_a_second_run_does_nothing(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = sweep(workspace, swept())
    folder = workspace.sweep("default")
    table = manifest.table
    points = {(row["lambda_cls"], row["num_neighbours"], row["num_coordinates"]) for row in table}
    assert points == {(weight, k, c) for weight in (0.01, 0.1) for k in (6, 12) for c in (1, 2)}
    assert [row["rank"] for row in table] == list(range(1, 9))
    scores = [row["retrieval"] for row in table]
    assert scores == sorted(scores, reverse=True) and all(0 < value <= 1 for value in scores)
    assert all(row["patterns"] == row["num_neighbours"] * row["num_coordinates"] for row in table)
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 and row["epochs"] == 2 for row in table)
    assert manifest.counts == SweepCounts(points=8, trials=8, failures=0, stopped=0)
    assert manifest.cost.seconds == pytest.approx(sum(row["seconds"] for row in table), abs=0.05)
    with (folder / "table.csv").open() as file:
        assert [row["rank"] for row in csv.DictReader(file)] == [str(row["rank"]) for row in table]
    best = load_settings(str(folder / "best.yaml"))
    assert best.pretraining.lambda_cls == table[0]["lambda_cls"]
    assert best.pretraining.num_joint_epochs == settings_of().pretraining.num_joint_epochs  # not the sweep's
    capsys.readouterr()
    assert sweep(workspace, swept()) == manifest and "nothing to do" in capsys.readouterr().out
    page = report(workspace, swept()).read_text()
    assert "Sweep default: 8 points as lines over λcls, K, C, retrieval" in page and "default by λcls" in page
    assert "one seed" in page


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_trials_that_fail_or_are_killed_cost_no_others(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = trials.run_sweep_trial

    def killed(config: dict[str, Any], patterns: Any, setup: Any) -> None:
        if config["point"]["learning_rate"] == 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        real(config, patterns, setup)

    monkeypatch.setattr(trials, "run_sweep_trial", killed)
    rates = space_file(tmp_path, {"pretraining.learning_rate": [1e30, 0.5, 1e-3]})
    manifest = sweep(workspace, swept(), "failing", rates)
    ended = [(row["rank"], row["status"]) for row in manifest.table]
    assert ended == [(1, "whole"), (None, "failed"), (None, "failed")]
    notes = {row["learning_rate"]: row["note"] for row in manifest.table}
    assert "lower the learning rate" in notes[1e30] and "its process died" in notes[0.5] and not notes[1e-3]
    assert all(row["seconds"] > 0 for row in manifest.table) and manifest.counts.failures == 2
    said = capsys.readouterr().out
    assert "failed: learning_rate=1e+30, seed 0: pretrain: the loss became" in said and "2 failed" in said
    assert "its process died" in report(workspace, swept()).read_text()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sweeps whose trials are not trained: each is what `outcome` says of its point and seed."""
    monkeypatch.setattr(joining, "connect", lambda: None)
    node = {"Alive": True, "NodeManagerAddress": "here", "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])

    def pretend(
        outcome: Callable[[dict[str, Any], int], float | str], most: int = 100, room: int = 2
    ) -> list[dict[str, Any]]:
        trained: list[dict[str, Any]] = []
        monkeypatch.setattr(capacity, "room_for", lambda cpus, gpus: room)

        def run_trials(queue: Queue, setup: Any, patterns: Path, concurrent: int, num_trials: int) -> None:
            running = []
            while len(trained) < most:
                trial = queue.next()
                running += [trial] if isinstance(trial, SweepTrial) else []
                if not running:
                    return
                if not isinstance(trial, SweepTrial) or len(running) == concurrent:
                    trial = running.pop()  # the one that began last ends first
                    told = outcome(trial.point, trial.seed)
                    trained.append(trial.point)
                    row = {"status": FAILED, "reason": told}
                    if isinstance(told, float):
                        row = {"status": WHOLE, "retrieval": told, "epochs": 1, "patterns": 1}
                    queue.end(TrialRecord(point=trial.point, seed=trial.seed, seconds=1.0, **row))
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "run_trials", run_trials)
        return trained

    return pretend


def width(point: dict[str, Any], seed: int) -> float:
    return 1 / (1 + abs(point["base_width"] - 9)) + seed % 7 / 1000


def test_an_interrupted_tpe_sweep_proposes_the_same_points_and_trains_what_is_missing(
    workspace: Workspace, tmp_path: Path, without_ray: Callable[..., list[Any]]
) -> None:
    rates = {"low": 1e-4, "high": 1e-1, "log": True}
    space = space_file(tmp_path, {"pretraining.learning_rate": rates, "pretraining.base_width": {"low": 1, "high": 16}})
    settings = swept(search="tpe", num_points=9, num_seeds=2, max_concurrent_trials=None)
    trained = without_ray(width)
    first = sweep(workspace, settings, "tpe", space)
    assert len(trained) == 18 and all(row["seeds"] == 2 and row["spread"] > 0 for row in first.table)
    assert "2 seeds" in first.seeds_note
    total = 0
    for most, room in ((5, 2), (8, 7), (100, 4)):  # goes on where there is other room
        trained = without_ray(width, most, room)
        try:
            again = sweep(workspace, settings, "cut", space)
        except KeyboardInterrupt:
            assert not (workspace.sweep("cut") / "manifest.json").exists()
        total += len(trained)
    assert total == 18 and again.table == first.table


@pytest.mark.parametrize(
    ("joined", "search", "most", "said"),
    [
        (True, "grid", None, None),  # as many as there is room for, whenever machines come
        (True, "random", None, None),
        (True, "tpe", None, 3),  # whose points depend on it; one waits, so that an autoscaler adds a node
        (True, "grid", 2, 2),
        (False, "grid", None, 2),
    ],
)
def test_machines_that_come_are_used_unless_it_was_said_how_many_trials_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, without_ray: Callable[..., list[Any]],
    joined: bool, search: str, most: int | None, said: int | None,
) -> None:  # fmt: skip
    asked = []

    def run_trials(queue: Queue, setup: Any, patterns: Path, most: int | None, num_trials: int) -> None:
        asked.append(most)
        raise KeyboardInterrupt

    without_ray(width)
    monkeypatch.setattr(module, "run_trials", run_trials)
    monkeypatch.setattr(environment, "is_joined", lambda: joined)
    with pytest.raises(KeyboardInterrupt):
        sweep(workspace, swept(search=search, max_concurrent_trials=most), f"{joined}-{search}-{most}")
    assert asked == [said]


def test_what_failed_is_tried_again_and_what_was_finished_is_kept(
    workspace: Workspace, tmp_path: Path, without_ray: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    space = space_file(tmp_path, {"pretraining.base_width": {"low": 1, "high": 16}})
    settings, folder = swept(search="tpe", num_points=9), workspace.sweep("mended")
    without_ray(lambda point, seed: width(point, seed) if point["base_width"] % 2 else "no luck")
    first = sweep(workspace, settings, "mended", space)
    failed = {row["base_width"] for row in first.table if row["status"] == "failed"}
    assert failed and first.counts.failures == len(failed) and first.table[-1]["note"] == "no luck"
    before = trial_files(folder)
    trained = without_ray(width)
    second = sweep(workspace, settings, "mended", space)
    assert f"{len(failed)} failed trials are tried again" in capsys.readouterr().out
    assert {point["base_width"] for point in trained} == failed and len(trained) == len(failed)
    assert sum(before[name] == when for name, when in trial_files(folder).items()) == 9 - len(failed)
    assert second.counts.failures == 0 and {row["base_width"] for row in second.table} == {
        row["base_width"] for row in first.table
    }
    # Mended ones count as failed in the search, as they did: the points are the same ever after.
    (folder / "manifest.json").unlink()
    trained = without_ray(width)
    assert sweep(workspace, settings, "mended", space).table == second.table and not trained


def test_a_sweep_of_which_nothing_is_left_is_an_error(
    workspace: Workspace, without_ray: Callable[..., list[Any]]
) -> None:
    without_ray(lambda point, seed: "no luck")
    with pytest.raises(TrainingError, match="every trial of the sweep failed; the first: no luck"):
        sweep(workspace, swept(), "hopeless")
    assert not (workspace.sweep("hopeless") / "manifest.json").exists()


def test_another_space_under_the_same_name_is_refused(
    workspace: Workspace, tmp_path: Path, without_ray: Callable[..., list[Any]]
) -> None:
    without_ray(lambda point, seed: 0.5)
    space = space_file(tmp_path, {"pretraining.lambda_cls": [0.1]})
    first = sweep(workspace, swept(), "one", space)
    assert first.command == ("sweep", "--name", "one", "--space", "SPACE.yaml")
    # How many run at once, and on what, changes no result.
    assert sweep(workspace, swept(max_concurrent_trials=1, num_gpus=0.5), "one", space) == first
    with pytest.raises(WorkspaceError, match=r"space.pretraining.lambda_cls was \[0.1\] and is now \[0.2\]"):
        sweep(workspace, swept(), "one", space_file(tmp_path, {"pretraining.lambda_cls": [0.2]}))


def test_a_sweep_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="patterns is not there or not finished: run `raygenesis discover`"):
        sweep(Workspace(tmp_path), swept())


EPOCHS = 8


def made_up(value_of: Callable[[dict[str, Any]], float]) -> Callable[..., None]:
    """A trial that trains nothing: its measure is known, and it takes its time."""

    def run(config: dict[str, Any], patterns: Any, setup: Any) -> None:
        for epoch in range(1, EPOCHS + 1):
            time.sleep(0.05)
            record = TrialRecord(
                point=config["point"], seed=config["seed"], status=WHOLE if epoch == EPOCHS else RUNNING,
                retrieval=value_of(config["point"]), epochs=epoch, patterns=1, seconds=0.05 * epoch, rankme=1.0,
                loss=1.0, accuracy=1.0, chance=0.5,
            )  # fmt: skip
            tune.report({PROXY: record.retrieval, RECORD: record.tree()})

    return run


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
@pytest.mark.parametrize("rule", ["median", "asha"])
def test_the_worse_trials_are_stopped_early_and_stay_in_the_table(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    monkeypatch.setattr(trials, "run_sweep_trial", made_up(lambda point: point["lambda_cls"]))
    weights = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]  # the best ones first: the rules compare with those that came before
    settings = swept(stopping=rule, num_joint_epochs=EPOCHS - 1, num_classification_epochs=1, max_concurrent_trials=1)
    manifest = sweep(workspace, settings, rule, space_file(tmp_path, {"pretraining.lambda_cls": weights}))
    table = manifest.table
    assert (table[0]["lambda_cls"], table[0]["status"]) == (0.9, "whole")
    stopped = [row for row in table if row["status"] == "stopped"]
    assert len(stopped) >= 2 and manifest.counts.stopped == len(stopped)
    assert list(table[-len(stopped) :]) == stopped
    for row in stopped:
        assert row["retrieval"] == row["lambda_cls"] and row["note"] == f"stopped at epoch {row['epochs']:.0f}"
        assert 2 <= row["epochs"] < EPOCHS
    assert 0 < manifest.cost.stopped_seconds < manifest.cost.seconds


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_is_not_stopped_for_lasting_longer_than_the_sweeps_own_epochs(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "run_sweep_trial", made_up(lambda point: point["num_joint_epochs"]))
    space = space_file(tmp_path, {"pretraining.num_joint_epochs": [EPOCHS - 1, 1]})
    manifest = sweep(workspace, swept(stopping="asha", max_concurrent_trials=1), "longer", space)
    best = manifest.table[0]
    assert (best["num_joint_epochs"], best["status"], best["epochs"]) == (EPOCHS - 1, "whole", EPOCHS)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_real_trials_report_each_epoch_to_the_stopping_rule(workspace: Workspace, tmp_path: Path) -> None:
    settings = swept(stopping="asha", num_joint_epochs=3, objective="rankme")
    space = space_file(tmp_path, {"pretraining.learning_rate": [1e-2, 1e-5]})
    manifest = sweep(workspace, settings, "asha-real", space)
    assert len(manifest.table) == 2 and manifest.counts.failures == 0
    for row in manifest.table:
        assert row["rankme"] >= 1 and (row["epochs"] == 4) == (row["status"] == "whole")


@pytest.mark.usefixtures("ray_cluster")
def test_more_than_the_cluster_ever_holds_is_refused_before_anything_is_made(workspace: Workspace) -> None:
    assert not ray.cluster_resources().get("GPU"), "this test is for machines without a GPU"
    for asked in ({"num_gpus": 1}, {"num_gpus": 0.25}):
        said = r"sweep.num_gpus=\S+ needs 1 × 1 CPU and \S+ GPU, .* never have the GPUs: it has 0 GPUs"
        with pytest.raises(SettingsError, match=said):
            sweep(workspace, swept(**asked), "gpus")
    assert not workspace.sweep("gpus").exists()


def test_room_is_counted_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(cpus: float, gpus: float, address: str = "10.0.0.2", alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}, "NodeManagerAddress": address}

    def room(nodes: list[dict[str, Any]], *asked: float) -> int:
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        return capacity.room_for(*asked)

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert room([node(8, 0), node(3, 0)], 1, 0) == 11
    assert room([node(8, 0), node(8, 0, alive=False)], 1, 0) == 8
    assert room([node(4, 0, "10.0.0.1")], 1, 0) == 2  # cores, not the CPUs that Ray was told of
    assert room([node(8, 2)], 1, 0.5) == 4 and room([node(8, 2)], 1, 0.4) == 4  # a trial's share is of one GPU
    assert room([node(3, 2)], 1, 0.25) == 3
    assert room([node(32, 2)], 1, 0.2) == 10 and room([node(32, 1)], 1, 0.1) == 10  # which are no binary fractions
    assert room([node(8, 1), node(8, 1)], 1, 2) == 0 and room([node(8, 4), node(8, 3)], 1, 2) == 3
    assert room([node(8, 0)], 1, 0.1) == 0


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"pretraining.num_neighbours": [6, 40]}, "pretraining.num_neighbours=40 is more than the 12 that the pattern"),
        ({"pretraining.num_coordinates": [3]}, "pretraining.num_coordinates=3 is more than the 2 that the pattern"),
        ({"pretraining.pretext": ["rotation"]}, "pretraining.pretext=rotation learns from random crops"),
        ({"pretraining.corruption": ["none", "nonesuch"]}, "pretraining.corruption='nonesuch' is unknown"),
        ({"pretraining.lambda_cls": [0.0], "pretraining.lambda_rec": [0.0]}, "lambda_rec and pretraining.lambda_cls"),
        ({"pretraining.network": ["segresnet"], "pretraining.base_width": [8, 12]}, "base_width=12 must be a multiple"),
    ],
)
def test_a_point_that_cannot_be_is_one_sentence_before_anything_is_made(
    workspace: Workspace, tmp_path: Path, space: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        sweep(workspace, swept(), "refused", space_file(tmp_path, space))
    assert words in str(error.value) and "space.yaml" in str(error.value) and "\n" not in str(error.value)
    assert not workspace.sweep("refused").exists()


def test_more_than_the_store_holds_comes_with_the_commands_that_extend_it(workspace: Workspace, tmp_path: Path) -> None:
    ranges = space_file(tmp_path, {"pretraining.num_neighbours": {"low": 6, "high": 40}})
    with pytest.raises(SettingsError) as error:
        sweep(workspace, swept(search="random"), "refused", ranges)
    assert f"remove {workspace.patterns}, then run" in str(error.value)
    assert f"`raygenesis discover --workspace {workspace.root} discovery.num_neighbours=40`" in str(error.value)


def test_a_corruption_that_is_too_strong_for_the_cube_is_refused(tmp_path: Path) -> None:
    small = Workspace(tmp_path)
    StorePlan(**PLAN, shape=(8, 8)).write(small.patterns)
    tree = swept().model_dump(mode="json")
    tree["discovery"] |= {"cube_shape": [8, 8], "scales": [{"extent_mm": [8, 8]}]}
    space = space_file(tmp_path, {"pretraining.corruption": ["none", "models-genesis"]})
    with pytest.raises(SettingsError, match=r"at pretraining.corruption=models-genesis: cubes of \(8, 8\) are"):
        sweep(small, settings_from(tree), "refused", space)


def test_every_network_of_the_space_must_fit_the_target(tmp_path: Path) -> None:
    made, shape = Workspace(tmp_path / "workspace"), (32, 32, 32)
    StorePlan(references=1, coordinates=1, neighbours=2, held_out=2, scales=1, shape=shape).write(made.patterns)
    write_boxes(tmp_path / "target", 4)
    description = tmp_path / "target" / "target.yaml"
    description.write_text("{task: segmentation, images: images, labels: labels}")
    tree = settings_of().model_dump(mode="json")
    tree["discovery"] |= {"cube_shape": shape, "scales": [{"extent_mm": shape}], "num_neighbours": 2}
    tree |= {"autoencoder": {"input_shape": shape}, "sweep": {"objective": "target", "target": str(description)}}
    tree["finetune"] |= {"input_shape": SHAPE_3D}
    space = space_file(tmp_path, {"pretraining.network": ["unet", "resnet18"]})
    with pytest.raises(
        SettingsError, match=r"finetune.input_shape=.*\(resnet18\) needs sides that are multiples of 32"
    ):
        sweep(made, settings_from(tree), "refused", space)
    tree["finetune"] |= {"learning_rate": [0.001, 0.01], "num_validation": 1}
    with pytest.raises(
        SettingsError, match=r"^finetune\.learning_rate=\[0\.001, 0\.01\]: a sweep compares its points at"
    ):
        sweep(made, settings_from(tree), "refused", space)
    assert not made.sweep("refused").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_target_is_few_shot_segmentation_of_subjects_that_were_not_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Workspace(tmp_path / "workspace")
    StorePlan(references=1, coordinates=2, neighbours=6, held_out=3, scales=1, shape=SHAPE_3D).write(made.patterns)
    write_boxes(tmp_path / "target", 8)
    description = tmp_path / "target" / "target.yaml"
    description.write_text("{task: segmentation, images: images, labels: labels}")
    images = {f"sub-{n}": tmp_path / "target" / "images" / f"sub-{n}.nii.gz" for n in range(8)}
    write_catalogue(made, dict(list(images.items())[:5]))
    tree = settings_of().model_dump(mode="json") | {"validation_fraction": 0.2}
    tree["discovery"] |= {"cube_shape": SHAPE_3D, "scales": [{"extent_mm": SHAPE_3D}], "num_neighbours": 6}
    tree["autoencoder"] |= {"input_shape": SHAPE_3D}
    tree["finetune"] |= {"num_labelled": 3, "num_test": 3, "num_trials": 2, "num_steps": 3, "batch_size": 2}
    tree["sweep"] = {
        "objective": "target", "num_classification_epochs": 1, "num_joint_epochs": 1, "target": str(description),
    }  # fmt: skip
    space = space_file(tmp_path, {"pretraining.lambda_cls": [0.01, 1.0]})
    manifest = sweep(made, settings_from(tree), "target", space)
    assert all(0 <= row["target"] <= 1 and row["retrieval"] > 0 for row in manifest.table)
    scores = [row["target"] for row in manifest.table]
    assert scores == sorted(scores, reverse=True)
    assert "2 few-shot trials a training, 3 subjects learnt from, 3 examples of others, unseen in pretraining" in (
        capsys.readouterr().out
    )
    # Five of the eight are in the archive: with more test subjects than are unseen it is refused, as finetune does.
    tree["finetune"] |= {"num_labelled": 7}
    with pytest.raises(SettingsError, match=r"finetune.num_labelled=7, finetune.num_test=3 and .* cannot be met"):
        sweep(made, settings_from(tree), "refused", space)
    with pytest.raises(SettingsError, match=r"sweep.objective=target needs a target: give sweep.target"):
        settings_from({"sweep": {"objective": "target"}})


def test_trials_leave_a_file_each_that_says_what_they_were(workspace: Workspace) -> None:
    files = list(workspace.sweep("default").glob("trial-*.json"))
    assert len(files) == 8
    for path in files:
        told = read_json(path)
        assert told["status"] == "whole" and told["seed"] == 0 and set(told["point"]) == {
            "lambda_cls", "num_neighbours", "num_coordinates",
        }  # fmt: skip
