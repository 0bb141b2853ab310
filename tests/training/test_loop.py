"""The loop without Ray: the same seed gives the same run, whatever happens and however the work is cut."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import PretrainingSettings
from raygenesis.training import devices
from raygenesis.training.checkpoints import copy_state, newest_checkpoint, save_checkpoint
from raygenesis.training.experiment import TrainingError, Tuning, best_of
from raygenesis.training.loop import Callbacks, run_epochs
from raygenesis.training.recorder import Recorder
from raygenesis.training.workers import Workers
from tests.support.experiments import HELD_OUT, TRAIN, Experiment, equal, read_steps, run, settings, without_timings
from tests.support.orders import training_batches
from tests.support.synthetic import pattern_table, samples


def pretext(**chosen: Any) -> PretextTask:
    """Both phases, a falling learning rate, real corruptions."""
    given = {
        "base_width": 2, "batch_size": 4, "decay_epochs": 1, "num_classification_epochs": 2, "num_joint_epochs": 2,
        **chosen,
    }  # fmt: skip
    return PretextTask(PretrainingSettings(**given), 0, (32, 32), num_references=1, num_coordinates=2)


def pretext_samples():
    return [samples(pattern_table(number, (32, 32), first=first), (32, 32)) for number, first in ((13, 0), (8, 100))]


@pytest.mark.parametrize(
    "chosen",
    [{}, {"num_pieces": 2, "clip_norm": 0.5, "average_decay": 0.9, "schedule": "cosine", "warmup_epochs": 1.5}],
    ids=["plain", "everything"],
)
def test_a_run_that_goes_on_from_any_step_equals_one_that_never_stopped(tmp_path, chosen):
    """Through the file of a checkpoint."""
    task, (train, held_out) = pretext(**chosen), pretext_samples()
    rows = []

    def save(now, row):
        rows.append(dict(row))
        save_checkpoint(tmp_path / str(now.steps_done), now.steps_done, copy_state(now.state()))

    whole = run_epochs(task, train, held_out, callbacks=Callbacks(on_step=save))
    assert [row["phase"] for row in whole.history] == ["classification"] * 2 + ["joint"] * 2
    assert [row["step"] for row in rows] == list(range(12))
    for steps in range(1, 13):
        again = []
        _, state = newest_checkpoint(tmp_path / str(steps))
        watch = Callbacks(on_step=lambda _, row, again=again: again.append(row))
        resumed = run_epochs(task, train, held_out, state=state, callbacks=watch)
        assert without_timings(again) == without_timings(rows[steps:])
        assert without_timings(resumed.history) == without_timings(whole.history)
        assert equal(resumed.model.state_dict(), whole.model.state_dict())
        assert equal(resumed.best, whole.best)


def test_a_batch_in_pieces_is_the_same_step_where_no_norm_counts_the_batch():
    task, (train, held_out) = pretext(norm="group"), pretext_samples()
    whole = run_epochs(task, train, held_out)
    pieces = run_epochs(replace(task, settings=task.settings.model_copy(update={"num_pieces": 4})), train, held_out)
    for row, expected in zip(pieces.history, whole.history, strict=True):
        for name in ("train_loss", "train_gradient_norm", "val_loss"):  # Adam enlarges what rounding leaves
            assert row[name] == pytest.approx(expected[name], rel=1e-4 if row["epoch"] == 0 else 2e-2), name


def test_steps_report_what_they_did():
    rows = []
    now = run(Experiment(settings=settings(num_epochs=2)), on_step=lambda now, row: rows.append(dict(row)))
    assert [(row["step"], row["epoch"], row["share"]) for row in rows] == [
        (number, number // 5, (number % 5 + 1) / 5) for number in range(10)
    ]
    for epoch, row in enumerate(now.history):
        own = [step["loss"] for step in rows if step["epoch"] == epoch]
        assert row["train_loss"] == pytest.approx(np.mean(own), rel=1e-12)
    assert all(row["cubes"] == 8 and 0 <= row["waited"] <= row["seconds"] for row in rows)


def test_figures_that_are_read_later_are_the_same_and_so_is_what_goes_on_from_between(monkeypatch, tmp_path):
    """As on a GPU: a checkpoint lies where figures are read, and every row comes once."""
    task, (train, held_out) = pretext(average_decay=0.9), pretext_samples()
    each = run_epochs(task, train, held_out)
    monkeypatch.setitem(devices.STEPS_A_READING, "cpu", 2)  # of an epoch's three steps
    recorder, rows = Recorder(tmp_path, 0.0), []

    def on_step(now, row):
        rows.append((row["step"], now.steps_done))
        recorder.on_step(now, row)

    late = run_epochs(task, train, held_out, callbacks=Callbacks(on_step=on_step, on_epoch=recorder.on_epoch))
    recorder.close(late)
    assert rows[:6] == [(0, 2), (1, 2), (2, 3), (3, 5), (4, 5), (5, 6)]
    assert without_timings(late.history) == without_timings(each.history) and equal(late.best, each.best)
    assert [row["step"] for row in read_steps(tmp_path)] == list(range(12))
    parts = [int(path.stem.partition("-")[2]) for path in sorted((tmp_path / "steps").iterdir())]
    assert not {1, 4, 7, 10} & set(parts)  # no part begins between two steps that were read together
    assert newest_checkpoint(tmp_path / "checkpoints").step == 12


def test_a_loss_that_is_read_later_still_ends_training_and_names_its_batch(monkeypatch, tmp_path):
    monkeypatch.setitem(devices.STEPS_A_READING, "cpu", 3)
    seen = []
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 2 .*bad-batch-0\.safetensors"):
        run(Experiment(nan_in_epoch=1), folder=tmp_path, on_step=lambda now, row: seen.append(row["step"]))
    assert seen == list(range(5))
    ((rows,), *_) = training_batches(42, 8, 0, 1)
    kept = load_file(tmp_path / "bad-batch-0.safetensors")
    assert kept["pattern_id"].tolist() == samples(TRAIN).columns["pattern_id"][rows].tolist()


def test_a_long_gradient_is_shortened_and_told_as_it_was():
    def first_step(clip_norm):
        experiment = Experiment(settings=settings(num_epochs=1), tuning=Tuning(clip_norm=clip_norm))
        seen = []

        @dataclass(frozen=True)
        class Descending(type(experiment)):
            def optimizer(self, model):
                return torch.optim.SGD(model.parameters(), lr=self.settings.learning_rate)

        before = experiment.build().state_dict()

        def watch(now, row):
            if not seen:
                moved = [(value - before[name]).square().sum() for name, value in now.model.named_parameters()]
                seen.append((row["gradient_norm"], float(torch.stack(moved).sum().sqrt().detach())))

        run(Descending(settings=experiment.settings, tuning=experiment.tuning), on_step=watch)
        return seen[0]

    norm, moved = first_step(None)
    assert moved == pytest.approx(1e-3 * norm, rel=1e-3)  # plain descent moves by rate × gradient
    clipped_norm, clipped = first_step(norm / 10)
    assert clipped_norm == norm and clipped == pytest.approx(moved / 10, rel=1e-3)


def test_the_average_of_the_weights_is_what_is_validated_and_kept():
    decay, weights = 0.8, []
    experiment = Experiment(settings=settings(num_epochs=2), tuning=Tuning(average_decay=decay))
    name = "to_latent.weight"
    now = run(experiment, on_step=lambda now, row: weights.append(now.model.state_dict()[name].clone()))
    expected = weights[0]
    for value in weights[1:]:
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(now.evaluated_model.state_dict()[name], expected, atol=1e-6)
    assert not torch.allclose(now.model.state_dict()[name], expected, atol=1e-6)
    assert (
        torch.equal(now.best[name], now.evaluated_model.state_dict()[name])
        or now.history[0]["val_mse"] < now.history[1]["val_mse"]
    )
    model = experiment.build()
    model.load_state_dict(now.evaluated_model.state_dict())
    held_out = samples(HELD_OUT).batch(np.arange(11)).cubes
    with torch.no_grad():
        error = (model.eval()(held_out) - held_out).square().mean().item()
    assert now.history[-1]["val_mse"] == pytest.approx(error, rel=1e-5)


def test_half_precision_leaves_out_steps_whose_scaled_gradient_overflows_and_goes_on():
    @dataclass(frozen=True)
    class Scaled(Experiment):
        def losses(self, model, batch, epoch, teacher=None):
            """Overflows once it is scaled by more than 2^14: float16 ends at 65,504."""
            loss = super().losses(model, batch, epoch)["loss"]
            loss.register_hook(lambda gradient: gradient * (float("inf") if gradient > 2**14 else 1))
            return {"loss": loss}

    rows = []
    now = run(Scaled(tuning=Tuning(scales_loss=True)), on_step=lambda now, row: rows.append(dict(row)))
    overflown = [not math.isfinite(row["gradient_norm"]) for row in rows]
    assert overflown == [True, True] + [False] * 18  # torch begins with 2^16
    assert now.scaler.get_scale() == 2**14
    assert all(math.isfinite(row["train_gradient_norm"]) for row in now.history)
    # The loss that is told is not scaled, and what is learnt is as without.
    assert now.history[-1]["train_loss"] < now.history[0]["train_loss"] < 1


def test_an_epoch_of_which_each_step_is_left_out_is_told_without_a_gradient():
    @dataclass(frozen=True)
    class Overflowing(Experiment):
        def losses(self, model, batch, epoch, teacher=None):
            loss = super().losses(model, batch, epoch)["loss"]
            if epoch == 0:
                loss.register_hook(lambda gradient: gradient * float("inf"))
            return {"loss": loss}

    whole = settings(batch_size=42)  # one step an epoch
    history = run(Overflowing(settings=whole, tuning=Tuning(scales_loss=True))).history
    assert history[0]["train_gradient_norm"] is None and history[1]["train_gradient_norm"] > 0
    assert history[0]["train_loss"] > 0


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
        def losses(self, model, batch, epoch, teacher=None):
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


def test_of_epochs_that_are_as_good_the_newest_is_the_best():
    """As all are until the phase that is judged: its figures are those of the weights that are kept."""
    states = []
    experiment = Experiment(settings=settings(num_epochs=4), errors=(1.0, math.inf, 1.0, 2.0))
    now = run(experiment, on_epoch=lambda now: states.append({n: v.clone() for n, v in now.model.state_dict().items()}))
    assert equal(now.best, states[2]) and best_of(experiment, now.history) is now.history[2]


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
    ((rows,), *_) = training_batches(len(train), 8, 0, 1)
    assert kept["pattern_id"].tolist() == train.columns["pattern_id"][rows].tolist()
    assert torch.equal(kept["cubes"], train.batch(rows).cubes)
    with safe_open(tmp_path / "bad-batch-0.safetensors", "pt") as opened:
        assert opened.metadata()["epoch"] == "1" and "nan" in opened.metadata()["what"]


def test_a_gradient_that_is_not_finite_ends_training_before_it_reaches_the_weights():
    @dataclass(frozen=True)
    class Steep(Experiment):
        def losses(self, model, batch, epoch, teacher=None):
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
        run_epochs(Experiment(), *tables, workers=Workers(world_size=2))


def test_no_thread_outlives_training():
    with pytest.raises(TrainingError):
        run(Experiment(nan_in_epoch=0))
    run(Experiment())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("feed", "decode", "read"))]
