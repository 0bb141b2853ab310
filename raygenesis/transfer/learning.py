"""Training a network on a target's labelled cases: steps, validations, when to stop, when it had converged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raygenesis.cluster.progress import Stopwatch
from raygenesis.settings import FinetuneSettings
from raygenesis.training.experiment import TrainingError

NUM_VALIDATIONS = 20
# Of the steps, the learning rate rises for this share.
RISING = 0.1
# A curve has converged where it has come so far on its way from its first to its best value.
CONVERGED = 0.95

# Narrow convolutions run twice as fast on a CPU with channels last; a tensor's format by its sides.
MEMORY_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TrainingOutcome:
    """losses: of each step. converged: the step at which the validation score (without validation, the smoothed loss)
    had come 95 % of its way; seconds: of one step."""

    losses: tuple[float, ...]
    converged: int
    seconds: float


def train(
    network: nn.Module,
    batches: Callable[[np.random.Generator], Batch],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    settings: FinetuneSettings,
    seed: int,
    validate: Callable[[], float] | None = None,
) -> TrainingOutcome:
    """Train in place what requires a gradient, for `num_steps` batches or until `patience` validations are no better.

    validate: the score of the network as it is, the higher the better; the best weights are kept. Raises TrainingError
    where the loss is no number.
    """
    optimizer = torch.optim.Adam(
        [weight for weight in network.parameters() if weight.requires_grad], settings.learning_rate
    )
    generator = np.random.default_rng(seed)
    validated = validated_after(settings.num_steps)
    losses: list[float] = []
    scores: list[float] = []
    best = None
    seconds = 0.0
    set_training(network)
    for step in range(1, settings.num_steps + 1):
        watch = Stopwatch()
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * share_of_rate(step, settings)
        images, wanted = batches(generator)
        loss = loss_of(network(images), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds += watch.seconds
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"the loss is {losses[-1]} at step {step}: lower finetune.learning_rate")
        if validate is not None and step in validated:
            scores.append(validate())
            set_training(network)
            if len(scores) - 1 == int(np.argmax(scores)):  # no better for being as good
                best = copy.deepcopy(network.state_dict())
            if settings.patience and len(scores) - 1 - int(np.argmax(scores)) >= settings.patience:
                break
    if best is not None:
        network.load_state_dict(best)
    converged = validated[converged_at(scores) - 1] if scores else converged_at([-loss for loss in smoothed(losses)])
    return TrainingOutcome(tuple(losses), converged, seconds / len(losses))


def validated_after(num_steps: int) -> list[int]:
    """The steps, from 1, after which there is a validation: twenty, evenly, the last among them; of fewer each."""
    return sorted({-(-number * num_steps // NUM_VALIDATIONS) for number in range(1, NUM_VALIDATIONS + 1)})


def share_of_rate(step: int, settings: FinetuneSettings) -> float:
    """The share of the learning rate that a step, from 1, is taken with."""
    if settings.schedule == "constant":
        return 1.0
    rising = max(1, round(RISING * settings.num_steps))
    if step <= rising:
        return step / rising
    return (1 + math.cos(math.pi * (step - rising) / (settings.num_steps - rising + 1))) / 2


def to_device(network: nn.Module, device: str) -> None:
    """Move a network, and keep the channels of a voxel together in its weights."""
    sides = next((weight.ndim for weight in network.parameters() if weight.ndim in MEMORY_FORMAT), 5)
    network.to(device, memory_format=MEMORY_FORMAT[sides])  # type: ignore[call-overload] # not among torch's overloads


def set_training(network: nn.Module) -> None:
    """Training mode, but of what is frozen: its batch norms keep their statistics too."""
    network.train()
    for part in network.children():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()


def smoothed(losses: Sequence[float]) -> list[float]:
    """Means over a tenth of all steps."""
    width = max(1, len(losses) // 10)
    return np.convolve(losses, np.full(width, 1 / width), mode="valid").tolist()


def converged_at(scores: Sequence[float]) -> int:
    """The number, from 1, of the first score that has come 95 % of the way from the first to the best."""
    wanted = scores[0] + CONVERGED * (max(scores) - scores[0])
    return next(number for number, score in enumerate(scores, 1) if score >= wanted)
