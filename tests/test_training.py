"""The epoch loop without Ray, and the same loop under Ray Train: shared, ended, killed and gone on with."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from raygenesis.config import AutoencoderSettings, PretrainingSettings
from raygenesis.discovery.autoencoder import IdentityMapping
from raygenesis.feeding import Samples, ordered_batches, training_batches
from raygenesis.pretraining.task import PretextTask
from raygenesis.training import TrainingError, fit_with_ray, load_state, read_metrics, run_epochs
from tests.synthetic import pattern_table, samples

TIMINGS = {"seconds", "cubes_per_s", "gap"}
TRAIN, HELD_OUT = pattern_table(42), pattern_table(11, first=100)


def settings(**chosen: Any) -> AutoencoderSettings:
    given = {"input_shape": (8, 8, 8), "base_width": 2, "latent_size": 4, "batch_size": 8, "num_epochs": 4, **chosen}
    return AutoencoderSettings(**given)


@dataclass(frozen=True)
class Experiment(IdentityMapping):
    """The auto-encoder of tiny scans, to which something may happen."""

    settings: AutoencoderSettings = field(default_factory=settings)
    seed: int = 0
    sample_key: str = "pattern_id"
    nan_in_epoch: int | None = None  # on the last worker
    nan_when_held_out: bool = False
    errors: tuple[float, ...] = ()  # what the epochs' held-out errors shall be
    kill_marker: Path | None = None  # the worker dies in epoch 2 unless this file is there

    def begin_epoch(self, model, optimizer, epoch):
        if epoch == 2 and self.kill_marker is not None and not self.kill_marker.exists():
            self.kill_marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().begin_epoch(model, optimizer, epoch)

    def losses(self, model, batch, epoch):
        losses = super().losses(model, batch, epoch)
        last = not torch.distributed.is_initialized() or torch.distributed.get_rank() > 0
        return {"loss": losses["loss"] * (float("nan") if epoch == self.nan_in_epoch and last else 1)}

    def evaluate(self, model, batch):
        sums = super().evaluate(model, batch)
        return {**sums, "mse": sums["mse"] * (float("nan") if self.nan_when_held_out else 1)}

    def score(self, row):
        return self.errors[row["epoch"]] if self.errors else super().score(row)


def without_timings(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in history]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run(experiment: Any, shape: tuple[int, ...] = (8, 8, 8), train: pa.Table = TRAIN, **arguments: Any):
    return run_epochs(experiment, samples(train, shape), samples(HELD_OUT, shape), **arguments)


# --- the loop -------------------------------------------------------------------------------------


def test_a_run_that_goes_on_from_any_epoch_equals_one_that_never_stopped(tmp_path):
    """Both phases, a falling learning rate, real corruptions and Adam's state, through the file of a checkpoint."""
    shape = (32, 32)
    chosen = PretrainingSettings(
        base_width=2, batch_size=4, decay_epochs=1, num_classification_epochs=2, num_joint_epochs=2
    )
    task = PretextTask(chosen, 0, shape, num_references=1, num_coordinates=2)
    train, held_out = (samples(pattern_table(8, shape, first=first), shape) for first in (0, 100))

    def save(now):
        (tmp_path / str(len(now.history))).mkdir()
        torch.save(now.state(), tmp_path / str(len(now.history)) / "state.pt")

    whole = run_epochs(task, train, held_out, on_epoch=save)
    assert [row["phase"] for row in whole.history] == ["classification"] * 2 + ["joint"] * 2
    for epochs in (1, 2, 3, 4):
        resumed = run_epochs(task, train, held_out, state=load_state(tmp_path / str(epochs)))
        assert without_timings(resumed.history) == without_timings(whole.history)
        assert equal(resumed.model.state_dict(), whole.model.state_dict())
        assert equal(resumed.best, whole.best)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, same, other = (run(Experiment(seed=seed)) for seed in (0, 0, 1))
    assert without_timings(one.history) == without_timings(same.history)
    assert equal(one.best, same.best)
    assert one.history[0]["train_loss"] != other.history[0]["train_loss"]


def test_figures_are_means_over_the_samples_of_the_epoch():
    experiment = Experiment(settings=settings(num_epochs=1, learning_rate=1e-12))
    seen = []

    @dataclass(frozen=True)
    class Watching(Experiment):
        def losses(self, model, batch, epoch):
            losses = super().losses(model, batch, epoch)
            seen.append((losses["loss"].item(), batch.columns["pattern_id"].tolist()))
            return losses

    now = run(Watching(settings=experiment.settings))
    row = now.history[0]
    assert [len(numbers) for _, numbers in seen] == [8] * 5  # 42 samples: the rest of two waits for another epoch
    assert len({number for _, numbers in seen for number in numbers}) == 40
    assert row["train_loss"] == pytest.approx(np.mean([loss for loss, _ in seen]))
    # Held out, every sample counts once, also those of the last, smaller batch.
    held_out = samples(HELD_OUT)
    with torch.no_grad():
        cubes = held_out.batch(np.arange(11)).cubes
        assert row["val_mse"] == pytest.approx(((now.model.eval()(cubes) - cubes) ** 2).mean().item(), rel=1e-5)
    assert row["epoch"] == 0 and row["phase"] == "identity" and row["learning_rate"] == 1e-12
    assert row["cubes_per_s"] * row["seconds"] == pytest.approx(40) and 0 <= row["gap"] <= 1


def test_the_best_weights_are_those_of_the_best_epoch():
    states = []
    experiment = Experiment(settings=settings(num_epochs=4), errors=(3.0, 1.0, 2.0, 1.5))
    now = run(experiment, on_epoch=lambda now: states.append({n: v.clone() for n, v in now.model.state_dict().items()}))
    assert equal(now.best, states[1])
    assert not equal(now.best, states[3])


def test_training_stops_early_when_the_patience_is_spent_and_stays_stopped():
    experiment = Experiment(settings=settings(num_epochs=50, patience=3), errors=(3.0, 2.0, *[2.5] * 48))
    now = run(experiment)
    assert len(now.history) == 5
    assert len(run(experiment, state=now.state()).history) == 5


def test_every_epoch_is_told():
    told = []
    run(Experiment(), on_epoch=lambda now: told.append(len(now.history)))
    assert told == [1, 2, 3, 4]


def test_a_loss_that_is_not_a_number_ends_training_at_once():
    epochs = []
    experiment = Experiment(nan_in_epoch=1)
    with pytest.raises(TrainingError, match=r"auto-encoder: the loss became nan in epoch 2 with a batch of 8: lower"):
        run(experiment, on_epoch=lambda now: epochs.append(now.history[-1]["epoch"]))
    assert epochs == [0]


def test_the_batch_that_made_the_loss_no_number_is_kept_and_named(tmp_path):
    with pytest.raises(TrainingError, match=r"the loss became nan .*kept in .*/bad-batch-0\.safetensors"):
        run(Experiment(nan_in_epoch=1), folder=tmp_path)
    kept = load_file(tmp_path / "bad-batch-0.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["bad-batch-0.safetensors"]
    train = samples(TRAIN)
    rows = training_batches(len(train), 8, 0, 1)[0]
    assert kept["pattern_id"].tolist() == train.columns["pattern_id"][rows].tolist()
    assert torch.equal(kept["cubes"], train.batch(rows).cubes)
    with safe_open(tmp_path / "bad-batch-0.safetensors", "pt") as opened:
        assert opened.metadata()["epoch"] == "1" and "nan" in opened.metadata()["what"]


def test_a_gradient_that_is_not_finite_ends_training_before_it_reaches_the_weights():
    @dataclass(frozen=True)
    class Steep(Experiment):
        def losses(self, model, batch, epoch):
            """The root of nothing: its value is 0, and its slope infinite."""
            first = next(model.parameters()).flatten()[0]
            return {"loss": (first - first.detach()).abs().sqrt()}

    seen = []
    with pytest.raises(TrainingError, match=r"the gradient became (nan|inf) \(the loss was 0\)"):
        run(Steep(), on_epoch=seen.append)
    assert not seen


def test_a_held_out_loss_that_is_not_a_number_ends_training_too():
    """No epoch is better than NaN: the best weights would silently be the first ones."""
    with pytest.raises(TrainingError, match="the held-out loss became NaN after epoch 1"):
        run(Experiment(nan_when_held_out=True))


def test_learning_that_diverges_is_told():
    with pytest.raises(TrainingError, match="nan"):
        run(Experiment(settings=settings(learning_rate=1e30)))


@pytest.mark.parametrize(("train", "held_out", "kind"), [(1, 3, "1 training"), (3, 0, "0 held-out")])
def test_fewer_samples_than_workers_are_refused(train, held_out, kind):
    tables = [samples(pattern_table(4).slice(0, number)) for number in (train, held_out)]
    with pytest.raises(TrainingError, match=rf"{kind} samples are too few for 2 worker\(s\)"):
        run_epochs(Experiment(), *tables, world_size=2)


def test_no_thread_outlives_training():
    with pytest.raises(TrainingError):
        run(Experiment(nan_in_epoch=0))
    run(Experiment())
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]


# --- under Ray ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def datasets(ray_cluster: None) -> dict[str, Any]:
    import ray

    # Workers of Ray need not be able to import the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pieces = [TRAIN.slice(30), TRAIN.slice(0, 9), TRAIN.slice(9, 21)]  # in no order
    return {"train": ray.data.from_arrow(pieces), "validation": ray.data.from_arrow(HELD_OUT)}


@pytest.fixture(scope="module")
def undisturbed(datasets: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    state, num_epochs = fit_with_ray(Experiment(), datasets, folder)
    assert num_epochs == 4
    return state, folder


def test_one_worker_of_ray_trains_as_the_plain_loop_does(undisturbed):
    state, folder = undisturbed
    plain = run(Experiment())
    assert read_metrics(folder) == state["history"]
    for row, expected in zip(state["history"], plain.history, strict=True):
        assert row.keys() == expected.keys()
        assert row["phase"] == "identity"
        for name in ("epoch", "learning_rate", "train_loss", "val_mse"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3)  # of other threads, so of other roundings


@pytest.mark.slow
def test_a_second_call_after_the_end_trains_nothing(undisturbed, datasets):
    state, folder = undisturbed
    again, num_epochs = fit_with_ray(Experiment(), datasets, folder)
    assert num_epochs == 0
    assert again["history"] == state["history"] == read_metrics(folder)
    assert equal(again["best"], state["best"])


def test_a_worker_killed_once_goes_on_from_its_checkpoint_to_the_same_end(undisturbed, datasets, tmp_path):
    marker = tmp_path / "killed"
    state, num_epochs = fit_with_ray(Experiment(kill_marker=marker), datasets, tmp_path / "run")
    assert marker.exists()
    assert num_epochs == 4
    expected, _ = undisturbed
    assert without_timings(state["history"]) == without_timings(expected["history"])
    assert without_timings(read_metrics(tmp_path / "run")) == without_timings(expected["history"])
    assert equal(state["model"], expected["model"]) and equal(state["best"], expected["best"])


def test_two_workers_share_the_samples_and_judge_the_weights_that_are_saved(datasets, tmp_path):
    experiment = Experiment()
    state, num_epochs = fit_with_ray(experiment, datasets, tmp_path, num_workers=2)
    assert num_epochs == len(read_metrics(tmp_path)) == 4
    errors = [row["val_mse"] for row in state["history"]]
    assert errors[-1] < errors[0]
    model = experiment.build()
    model.load_state_dict(state["model"])
    assert held_out_error(model.eval()) == pytest.approx(errors[-1], rel=1e-5)
    model.load_state_dict(state["best"])
    assert held_out_error(model.eval()) == pytest.approx(min(errors), rel=1e-5)


def held_out_error(model: torch.nn.Module) -> float:
    feed: Samples = samples(HELD_OUT)
    with torch.no_grad():
        batches = [feed.batch(indices).cubes for indices in ordered_batches(len(feed), 4)]
        return float(torch.cat([(model(cubes) - cubes).square().flatten(1).mean(1) for cubes in batches]).mean())


@pytest.mark.slow
def test_an_error_of_the_users_ends_the_run_without_trying_again(datasets, tmp_path):
    """Though one of the two workers alone sees it: the other does not wait for it."""
    experiment = Experiment(nan_in_epoch=1)
    with pytest.raises(TrainingError, match="the loss became nan in epoch 2"):
        fit_with_ray(experiment, datasets, tmp_path, num_workers=2)
    assert len(read_metrics(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.glob("bad-batch-*")) == ["bad-batch-1.safetensors"]
