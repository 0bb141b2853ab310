"""What a step takes of its device: the peak of a process that does it, and what is said of a GPU that has less."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from raygenesis.cluster import capacity
from raygenesis.errors import SettingsError
from raygenesis.networks.network import num_parameters
from raygenesis.pretraining.fitting import check_memory
from raygenesis.pretraining.pretexts import PRETEXTS
from raygenesis.pretraining.step_memory import step_memory
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import load_settings
from raygenesis.text.amounts import GIB

SHAPE = (32, 32, 32)


def task(*settings: str) -> PretextTask:
    given = ["pretraining.base_width=8", "pretraining.batch_size=16", "pretraining.precision=fp32", *settings]
    chosen = load_settings("cpu-small", given)
    return PretextTask(chosen.pretraining, 0, SHAPE, 2, 4)


MEASURED = """
import sys
import numpy as np
import torch
from raygenesis.training.feeding import Batch
from tests.pretraining.test_fitting import SHAPE, task
torch.set_num_threads(1)
chosen = task(*sys.argv[1:])
columns = {name: np.arange(16) for name in ("pattern_id", "reference", "coordinate", "scale")}
columns["reference"] = columns["reference"] % 2
columns["coordinate"] = columns["coordinate"] % 4
def peak():  # of what was asked for; what is resident may be less, where the system takes pages back
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmPeak"))
    return int(line.split()[1]) * 1024
def steps(chosen, cubes, number):
    model = chosen.build()
    optimizer = chosen.optimizer(model)
    for _ in range(number):
        chosen.losses(model, Batch(cubes, {name: column[:len(cubes)] for name, column in columns.items()}),
                      chosen.num_epochs - 1)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
steps(chosen, torch.rand(1, 1, *SHAPE), 1)  # what libraries take for themselves
before = peak()
steps(chosen, torch.rand(16, 1, *SHAPE), 2)
print(peak() - before)
"""


@pytest.mark.parametrize(
    "changes",
    [(), ("pretraining.precision=bf16",), ("pretraining.gradient_checkpointing=true",)],
    ids=["fp32", "bf16", "checkpointed"],
)
def test_the_peak_of_a_step_is_that_of_a_process_that_does_it(changes: tuple[str, ...]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", MEASURED, *changes], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout)
    # A process that has done a step of one cube has taken the weights and moments of another network already.
    memory = step_memory(task(*changes))
    assert memory.activations == pytest.approx(measured, rel=0.25)


def test_weights_moments_and_activations_are_told_apart() -> None:
    chosen = task()
    number = num_parameters(chosen.build())
    memory = step_memory(chosen)
    assert memory.optimizer == pytest.approx(8 * number, rel=0.01)  # Adam's two, float32
    assert 4 * number <= memory.weights < 1.1 * 4 * number and memory.gradients <= 4 * number
    assert memory.total == memory.weights + memory.optimizer + memory.gradients + memory.activations + memory.feed
    averaged = step_memory(task("pretraining.average_decay=0.99"))
    assert averaged.weights == pytest.approx(2 * memory.weights, rel=0.01)


def test_pieces_workers_checkpointing_and_precision_take_less() -> None:
    whole = step_memory(task()).activations
    assert step_memory(task("pretraining.num_pieces=2")).activations == pytest.approx(whole / 2, rel=0.05)
    assert step_memory(task(), num_workers=4).activations == pytest.approx(whole / 4, rel=0.05)
    assert step_memory(task("pretraining.gradient_checkpointing=true")).activations < 0.8 * whole
    assert step_memory(task("pretraining.precision=bf16")).activations < 0.7 * whole
    assert step_memory(task("pretraining.channels_last=true")) == step_memory(task())


@pytest.mark.parametrize("name", sorted(PRETEXTS))
def test_every_pretext_task_is_counted(name: str) -> None:
    extra = {"pattern-contrast": ("pretraining.lambda_pair=1", "pretraining.average_decay=0.99")}
    memory = step_memory(task(f"pretraining.pretext={name}", *extra.get(name, ())))
    assert memory.activations > memory.weights > 0


LARGE = ("pretraining.precision=bf16", "pretraining.batch_size=96")


def on_a_gpu_of(gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "on_gpu", lambda key, question: int(gib * GIB))


def paper(*settings: str) -> PretextTask:
    chosen = load_settings("paper-3d", ["pretraining.precision=fp32", "pretraining.use_gpu=true", *settings])
    return PretextTask(chosen.pretraining, 0, tuple(chosen.discovery.cube_shape), 200, 44)


@pytest.mark.parametrize(
    ("gib", "settings", "advice"),
    [
        (24, (), "give pretraining.precision=bf16"),
        (24, LARGE, "give pretraining.gradient_checkpointing=true"),
        (16, LARGE, "give pretraining.num_pieces=2"),
        (0.3, (), "lower pretraining.base_width, or make the store again with smaller cubes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_least_that_would(
    gib: float, settings: tuple[str, ...], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu_of(gib, monkeypatch)
    with pytest.raises(SettingsError, match=rf"a step takes [\d.]+ GiB of a GPU of .* can be used: {advice}$"):
        check_memory(paper(*settings))


def test_the_advice_is_one_that_the_settings_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu_of(2, monkeypatch)
    with pytest.raises(SettingsError) as refused:
        check_memory(paper("pretraining.num_workers=8"))
    given = str(refused.value).partition(": give ")[2].split()
    assert "pretraining.num_pieces=8" in given or "pretraining.num_pieces=4" in given
    check_memory(paper("pretraining.num_workers=8", *given))


def test_a_run_that_has_begun_is_warned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_a_gpu_of(24, monkeypatch)
    check_memory(paper(), has_begun=True)
    assert "warning: pretraining.batch_size=64: a step takes 3" in capsys.readouterr().out


def test_what_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu_of(80, monkeypatch)
    check_memory(paper())
    on_a_gpu_of(24, monkeypatch)
    check_memory(paper("pretraining.num_workers=2"))
    check_memory(paper("pretraining.precision=bf16"))
