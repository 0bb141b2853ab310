"""Training under Ray Train: shared by any number of workers, killed at any step, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from raygenesis.errors import WorkspaceError
from raygenesis.training.checkpoints import newest_checkpoint, steps_in
from raygenesis.training.experiment import TrainingError, Tuning
from raygenesis.training.fit import Resources, fit_with_ray
from raygenesis.training.metrics import read_metrics
from raygenesis.training.recorder import CHECKPOINTS
from tests.support import experiments
from tests.support.experiments import HELD_OUT, TRAIN, Experiment, equal, read_steps, run, settings, without_timings
from tests.support.synthetic import samples

# Written at every step; the disk here is quick.
ALWAYS = Resources(checkpoint_seconds=0)


@pytest.fixture(scope="module")
def datasets(ray_cluster: None) -> dict[str, Any]:
    import ray

    # Workers of Ray need not be able to import the tests.
    for module in (sys.modules[__name__], experiments):
        ray.cloudpickle.register_pickle_by_value(module)
    pieces = [TRAIN.slice(30), TRAIN.slice(0, 9), TRAIN.slice(9, 21)]  # in no order
    return {"train": ray.data.from_arrow(pieces), "validation": ray.data.from_arrow(HELD_OUT)}


@pytest.fixture(scope="module")
def undisturbed(datasets: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    state, num_epochs = fit_with_ray(Experiment(), datasets, folder)
    assert num_epochs == 4
    return state, folder


def assert_same_run(folder: Path, state: dict[str, Any], undisturbed: tuple[dict[str, Any], Path]) -> None:
    """Step for step, epoch for epoch, weight for weight."""
    expected, whole = undisturbed
    assert without_timings(read_steps(folder)) == without_timings(read_steps(whole))
    assert without_timings(read_metrics(folder)) == without_timings(expected["history"])
    assert without_timings(state["history"]) == without_timings(expected["history"])
    for name in ("model", "best"):
        assert equal(state[name], expected[name])


def test_one_worker_of_ray_trains_as_the_plain_loop_does(undisturbed):
    state, folder = undisturbed
    rows = []
    plain = run(Experiment(), on_step=lambda now, row: rows.append(dict(row)))
    assert read_metrics(folder) == state["history"]
    steps = read_steps(folder)
    assert [row["step"] for row in steps] == list(range(20)) and steps[0].keys() == rows[0].keys()
    for row, expected in zip([*steps, *state["history"]], [*rows, *plain.history], strict=True):
        assert row.keys() == expected.keys() and row["phase"] == "identity"
        for name in row.keys() & {"epoch", "learning_rate", "loss", "train_loss", "val_mse"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-3)  # of other threads, so of other roundings
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "metrics.parquet", "steps"]


@pytest.mark.slow
def test_a_second_call_after_the_end_trains_nothing(undisturbed, datasets, tmp_path):
    state, folder = undisturbed
    again, num_epochs = fit_with_ray(Experiment(), datasets, folder)
    assert num_epochs == 0
    assert again["history"] == state["history"] == read_metrics(folder)
    assert equal(again["best"], state["best"])
    assert len(read_steps(folder)) == 20


@pytest.mark.slow
def test_a_worker_killed_twice_in_the_midst_of_epochs_ends_as_if_undisturbed(undisturbed, datasets, tmp_path):
    experiment = Experiment(kills=((0, 8), (0, 5)), markers=tmp_path, seconds_a_step=0.05)
    state, num_epochs = fit_with_ray(experiment, datasets, tmp_path / "run", ALWAYS)
    assert (tmp_path / "killed-0").exists() and (tmp_path / "killed-1").exists()
    assert num_epochs == 4
    assert_same_run(tmp_path / "run", state, undisturbed)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_its_steps_and_no_more(undisturbed, datasets, tmp_path, capsys):
    half = Experiment(settings=settings(num_epochs=2), seconds_a_step=0.02)
    fit_with_ray(half, datasets, tmp_path, ALWAYS)
    before, last = steps_in(tmp_path / CHECKPOINTS)
    path = tmp_path / CHECKPOINTS / f"step-{last:09d}.pt"
    path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    state, _ = fit_with_ray(Experiment(), datasets, tmp_path)
    said = capsys.readouterr().out
    assert f"step-{last:09d}.pt is damaged" in said and "warning" in said
    assert before < last == 10
    assert_same_run(tmp_path, state, undisturbed)


def in_double():
    @dataclass(frozen=True)
    class Double(Experiment):
        """Rounding is far below what another order of batches, or other statistics of a norm, would change."""

        def build(self):
            return super().build().double()

        def losses(self, model, batch, epoch, teacher=None):
            return super().losses(model, type(batch)(batch.cubes.double(), batch.columns), epoch)

        def evaluate(self, model, batch):
            return super().evaluate(model, type(batch)(batch.cubes.double(), batch.columns))

    return Double(settings=settings(batch_size=10), tuning=Tuning(num_pieces=2, clip_norm=1.0, average_decay=0.9))


@pytest.mark.parametrize("num_workers", [3, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 4))])
def test_any_number_of_workers_learns_the_same(datasets, tmp_path, num_workers):
    """Batch norms included: there is one after each convolution. Shares of three are unequal."""
    experiment = in_double()
    rows = []
    alone = run(experiment, on_step=lambda now, row: rows.append(dict(row)))
    state, _ = fit_with_ray(experiment, datasets, tmp_path, replace(ALWAYS, num_workers=num_workers))
    steps = read_steps(tmp_path)
    assert len(steps) == len(rows) == 16
    for row, expected in zip([*steps, *state["history"]], [*rows, *alone.history], strict=True):
        for name in row.keys() & {"loss", "gradient_norm", "train_loss", "train_gradient_norm", "val_mse"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-9), (name, row)
    for name, value in alone.best.items():
        assert torch.allclose(state["best"][name].double(), value.double(), rtol=1e-7, atol=1e-9), name


@pytest.mark.slow
def test_the_work_may_be_shared_by_another_number_of_workers_after_a_kill(datasets, tmp_path):
    """Elastic: the curve does not tell how many there were."""
    experiment = in_double()
    alone = run(experiment)
    first = replace(experiment, settings=settings(batch_size=10, num_epochs=2))
    fit_with_ray(first, datasets, tmp_path, replace(ALWAYS, num_workers=2))
    state, num_epochs = fit_with_ray(experiment, datasets, tmp_path, replace(ALWAYS, num_workers=(1, 3)))
    assert num_epochs == 2
    for row, expected in zip(state["history"], alone.history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-9)
        assert row["val_mse"] == pytest.approx(expected["val_mse"], rel=1e-9)


@pytest.mark.slow
def test_two_workers_judge_the_weights_that_are_saved(datasets, tmp_path):
    state, _ = fit_with_ray(Experiment(), datasets, tmp_path, Resources(num_workers=2))
    errors = [row["val_mse"] for row in state["history"]]
    assert errors[-1] < errors[0]
    model = Experiment().build()
    model.load_state_dict(state["best"])
    cubes = samples(HELD_OUT).batch(np.arange(11)).cubes
    with torch.no_grad():
        error = float((model.eval()(cubes) - cubes).square().mean())
    assert error == pytest.approx(min(errors), rel=1e-5)


@pytest.mark.slow
def test_a_killed_worker_among_two_costs_nothing_but_time(datasets, tmp_path):
    experiment = replace(Experiment(), seconds_a_step=0.05)
    whole, _ = fit_with_ray(experiment, datasets, tmp_path / "whole", replace(ALWAYS, num_workers=2))
    killed = replace(experiment, kills=((1, 7),), markers=tmp_path)
    state, _ = fit_with_ray(killed, datasets, tmp_path / "killed", replace(ALWAYS, num_workers=2))
    assert (tmp_path / "killed-0").exists()
    assert_same_run(tmp_path / "killed", state, (whole, tmp_path / "whole"))


@pytest.mark.slow
def test_an_error_of_the_users_ends_the_run_without_trying_again(datasets, tmp_path):
    """Though one of the two workers alone sees it: the other does not wait for it."""
    experiment = Experiment(nan_in_epoch=1)
    with pytest.raises(TrainingError, match="the loss became nan in epoch 2"):
        fit_with_ray(experiment, datasets, tmp_path, Resources(num_workers=2))
    assert sorted(path.name for path in tmp_path.glob("bad-batch-*")) == ["bad-batch-1.safetensors"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_error_that_one_worker_alone_sees_ends_the_others_too(datasets, tmp_path):
    """They wait for it in a sum, as they would for half an hour."""

    @dataclass(frozen=True)
    class Damaged(Experiment):
        def losses(self, model, batch, epoch, teacher=None):
            if epoch == 1 and torch.distributed.get_rank() == 1:
                (tmp_path / f"seen-{os.getpid()}").touch()
                raise WorkspaceError("part-0.parquet is damaged")
            return super().losses(model, batch, epoch)

    with pytest.raises(TrainingError, match=r"^part-0\.parquet is damaged$"):
        fit_with_ray(Damaged(), datasets, tmp_path / "run", Resources(num_workers=2))
    assert len(list(tmp_path.glob("seen-*"))) == 1  # and is not tried again
    state, _ = fit_with_ray(Experiment(), datasets, tmp_path / "run", Resources(num_workers=2))
    assert len(state["history"]) == 4 and not list((tmp_path / "run").glob("refused*"))


@pytest.mark.slow
def test_workers_that_die_without_getting_further_are_an_error_that_says_so(datasets, tmp_path):
    experiment = Experiment(kills=tuple((0, 1) for _ in range(20)), markers=tmp_path)
    with pytest.raises(TrainingError, match=r"workers died 4 times and training came no further than step 0"):
        fit_with_ray(experiment, datasets, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".ray-*"))


def controllers() -> list[int]:
    """The processes of this test's Ray that watch over workers."""
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()  # no public name for it
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words, parent = process.info["cmdline"] or [""], process.info["ppid"]
        if words[0].startswith("ray::TrainController") and session in " ".join(psutil.Process(parent).cmdline()):
            found.append(process.pid)
    return found


@pytest.mark.slow
def test_a_lost_controller_is_one_sentence_and_the_same_command_goes_on(undisturbed, datasets, tmp_path):
    folder = tmp_path / "run"

    def kill() -> None:
        while not (steps := steps_in(folder / CHECKPOINTS)) or steps[-1] < 3:
            time.sleep(0.05)
        for pid in controllers():
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(TrainingError, match=r"lost the process that watches over the workers .*on from step \d+"):
        fit_with_ray(Experiment(seconds_a_step=0.5), datasets, folder, ALWAYS)
    thread.join()
    state, _ = fit_with_ray(Experiment(), datasets, folder)
    assert_same_run(folder, state, undisturbed)


SCRIPT = """
import sys
from pathlib import Path
import raygenesis
from raygenesis.cluster import joining
from raygenesis.training.fit import Resources, fit_with_ray
from tests.support.experiments import HELD_OUT, TRAIN, Experiment
import ray
joining.connect()
datasets = {"train": ray.data.from_arrow(TRAIN), "validation": ray.data.from_arrow(HELD_OUT)}
fit_with_ray(Experiment(seconds_a_step=0.2), datasets, Path(sys.argv[1]), Resources(checkpoint_seconds=0))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("whole_ray", [False, True], ids=["driver", "all of Ray"])
def test_a_killed_driver_or_all_of_ray_goes_on_at_the_next_batch(undisturbed, datasets, tmp_path, whole_ray):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], start_new_session=True, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (steps := steps_in(folder / CHECKPOINTS)) or steps[-1] < 7:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    (os.killpg if whole_ray else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3)  # Ray ends the workers of a driver that is gone
    reached, _ = newest_checkpoint(folder / CHECKPOINTS)
    assert 7 <= reached < 20
    state, _ = fit_with_ray(Experiment(), datasets, folder)
    assert_same_run(folder, state, undisturbed)


@pytest.mark.slow
def test_stored_samples_are_opened_by_each_worker(undisturbed, datasets, tmp_path):
    @dataclass(frozen=True)
    class Elsewhere:
        table: pa.Table

        def open(self, key, shape):
            return samples(self.table, shape)

    feeds = {"train": Elsewhere(TRAIN), "validation": Elsewhere(HELD_OUT)}
    state, _ = fit_with_ray(Experiment(), feeds, tmp_path)
    assert_same_run(tmp_path, state, undisturbed)
