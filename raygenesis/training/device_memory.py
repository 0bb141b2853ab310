"""How much memory a step of training takes of its device, from a step on tensors that have shapes and no values."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that a step takes of its device at its peak.

    weights: of the model and of its moving average; optimizer: its moments; gradients: of the weights, as far as they
    are there at the peak; activations: what is computed, and kept for the backward pass or for as long as it is needed;
    feed: batches that wait.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    feed: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.activations + self.feed


# Of a model and its moving average, if there is one.
LossOf = Callable[[nn.Module, nn.Module | None], torch.Tensor]


def device_memory(
    build: Callable[[], nn.Module],
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    loss_of: LossOf,
    is_averaged: bool = False,
) -> DeviceMemory:
    """What a forward and backward pass and the optimiser's step take, by torch's own tracker; nothing is computed.

    build, optimizer_of, loss_of: are called where tensors have no values: they must not ask for any, nor take tensors
    along. What libraries take for themselves, such as cuDNN's workspace, is not counted.
    """
    with FakeTensorMode():
        model = build()
        optimizer = optimizer_of(model)
        average = build() if is_averaged else None

        def step() -> None:
            loss_of(model, average).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # the optimiser's moments are there after a first step
        gc.collect()  # what a cycle of references holds would count as taken
        tracker = MemTracker()
        tracker.track_external(*[one for one in (model, optimizer, average) if one is not None])
        with tracker:
            step()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    found = {getattr(kind, "name", kind): size for kind, size in peak.items()}
    return DeviceMemory(
        weights=found["PARAM"] + found["BUFFER"], optimizer=found["OPT"], gradients=found["GRAD"],
        activations=found["ACT"] + found["TEMP"] + found["OTH"],
    )  # fmt: skip
