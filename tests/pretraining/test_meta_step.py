"""A training step on torch's `meta` device: it never waits for a GPU, and leaves nothing on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raygenesis.networks.network import PretextNetwork
from raygenesis.pretraining import task as task_module
from raygenesis.pretraining.overlap import ClassBoxes
from raygenesis.pretraining.pretexts import PRETEXTS
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import NETWORK_DIVISORS, PretrainingSettings
from raygenesis.training import loop
from raygenesis.training.experiment import Tuning
from raygenesis.training.feeding import StoredBatch
from raygenesis.training.precision import PRECISIONS
from raygenesis.training.workers import Workers
from tests.support.meta import meta_autocast

META = Workers(device="meta")
BOXES = ClassBoxes((((0.0, 0.0, 0.0), (9.0, 0.0, 0.0), (90.0, 0.0, 0.0)),), ((40.0, 40.0, 40.0),))


@pytest.fixture(autouse=True)
def cast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "autocast", meta_autocast)


SLOW = ("resnet101", "resnet152", "resnet200")


class MetaTask(PretextTask):
    """Its networks come to be on the meta device, which draws no weights, and whose optimizer cannot scale a loss."""

    @property
    def tuning(self) -> Tuning:
        return replace(super().tuning, scales_loss=False)

    def build(self) -> PretextNetwork:
        with torch.device("meta"):
            return super().build()


def task(ndim: int = 3, **chosen: Any) -> PretextTask:
    given = {
        "base_width": 8, "batch_size": 8, "num_classification_epochs": 1, "num_joint_epochs": 1, "precision": "fp32",
        **chosen,
    }  # fmt: skip
    side = 64 if chosen.get("network") == "i3d" else 32
    return MetaTask(PretrainingSettings(**given), 0, (side,) * ndim, 1, 3, boxes=BOXES)


def cubes(chosen: PretextTask, number: int = 8) -> StoredBatch:
    columns = {
        "pattern_id": np.arange(number), "reference": np.zeros(number, np.int32),
        "coordinate": np.arange(number) // 2 % 3, "scale": np.zeros(number, np.int8),
    }  # fmt: skip
    return StoredBatch(torch.zeros(number, 1, *chosen.sample_shape, dtype=torch.int16), columns)


def step(chosen: PretextTask, progress: loop.Progress, epoch: int) -> dict[str, torch.Tensor]:
    """A step of the loop in an epoch; returns its figures."""
    assert {value.device.type for value in progress.model.state_dict().values()} == {"meta"}
    progress.history = [{}] * epoch  # type: ignore[typeddict-item]
    chosen.begin_epoch(progress.model, epoch)
    progress.model.train()
    run, batch = loop._Run(chosen, META, loop.NO_CALLBACKS), cubes(chosen)
    figures = loop._step(run, progress, progress.model, [batch] * chosen.settings.num_pieces, 8, 1e-3)
    assert {value.device.type for value in figures.values()} == {"meta"}
    states = [value for state in progress.optimizer.state.values() for value in state.values() if value.ndim]
    assert states and {value.device.type for value in states} == {"meta"}
    return figures


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pretext", PRETEXTS)
def test_every_pretext_task_in_every_phase(pretext: str, precision: str) -> None:
    pair = {"average_decay": 0.9} if PRETEXTS[pretext].learns_from_pairs else {}
    chosen = task(pretext=pretext, precision=precision, **pair)
    progress = loop._begin(chosen, META)
    for epoch, phase in enumerate(chosen.phases):
        figures = step(chosen, progress, epoch)
        assert phase == "joint" or phase in figures
    with torch.no_grad():
        sums = chosen.evaluate(progress.model.eval(), cubes(chosen).on("meta"))
    assert {value.device.type for value in sums.values()} == {"meta"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NETWORK_DIVISORS]
)
def test_every_network(network: str, precision: str) -> None:
    chosen = task(network=network, precision=precision)
    assert {"classification", "restoration"} <= step(chosen, loop._begin(chosen, META), 1).keys()


@pytest.mark.parametrize(
    "chosen",
    [
        {"num_pieces": 2, "clip_norm": 0.5, "average_decay": 0.9, "joint_encoder_rate": 0.1},
        {"lambda_pair": 0.5, "lambda_cross": 1.0, "average_decay": 0.9},
        {"overlap": "soft"}, {"overlap": "ignore"}, {"norm": "instance"}, {"norm": "group"},
        {"norm": "batch-statistics"}, {"channels_last": False}, {"gradient_checkpointing": True},
        {"corruption": "semantic-genesis-released"},
    ],
    ids=str,
)  # fmt: skip
def test_every_other_setting_of_a_step(chosen: dict[str, Any]) -> None:
    made = task(**chosen)
    progress = loop._begin(made, META)
    for _ in range(2):  # the second goes on from the optimizer's state, and from the average of the weights
        step(made, progress, 1)


@pytest.mark.parametrize("pretext", ["semantic-genesis", "rotation"])
def test_images_of_two_sides(pretext: str) -> None:
    boxes = ClassBoxes((((0.0, 0.0), (9.0, 0.0), (90.0, 0.0)),), ((40.0, 40.0),))
    chosen = replace(task(2, pretext=pretext), boxes=boxes)
    step(chosen, loop._begin(chosen, META), 1)


def test_what_waits_or_stays_on_the_cpu_raises_here() -> None:
    values = torch.rand(4, device="meta")
    for waits in (lambda: values[0].item(), values.nonzero, lambda: values[values > 0], lambda: values + torch.rand(4)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            waits()
