"""Training a network on a target's labelled cases: steps, validations, when to stop, and when it has converged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raygenesis.cluster.progress import Stopwatch
from raygenesis.networks.layers import batch_norms
from raygenesis.settings import FinetuneSettings
from raygenesis.settings.streams import LABELLED_BATCHES
from raygenesis.training.devices import is_fused, prefer_speed, steps_a_reading
from raygenesis.training.experiment import TrainingError
from raygenesis.training.precision import autocast

NUM_VALIDATIONS = 20
# Share of the steps in which the learning rate rises.
WARM_UP = 0.1
# A curve has converged where it has covered this share of the way from its first to its best value.
CONVERGED = 0.95

# Narrow convolutions run twice as fast on a CPU with channels last; a tensor's format by its sides.
MEMORY_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training went.

    losses: of each step. converged_at: the step at which the validation score (without validation, the smoothed loss)
    had covered 95 % of its way. seconds_per_step: mean over steps, without validations. scores: each validation's step
    and score.
    """

    losses: tuple[float, ...]
    converged_at: int
    seconds_per_step: float
    scores: tuple[tuple[int, float], ...] = ()


def train(
    network: nn.Module,
    draw_batch: Callable[[np.random.Generator], Batch],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    settings: FinetuneSettings,
    seed: int,
    validate: Callable[[], float] | None = None,
) -> TrainingOutcome:
    """Train in place the weights that require a gradient, with the AdamW optimizer.

    Training ends after `settings.num_steps` batches, or after `settings.patience` validations without a better score.
    With `settings.decoder_first` the module `encoder` of the network is not trained in the first steps.
    draw_batch: returns images and targets. loss_of: takes the network's output, float32, and the targets. validate:
    returns the score of the network as it is, the higher the better; the best weights are kept. Raises TrainingError
    where the loss is not finite.
    """
    (rate,) = settings.rates
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=settings.weight_decay, fused=is_fused(network))
    waiting = _encoder_weights(network) if settings.decoder_first else []
    unlearnt = _unlearnt_norms(network) if waiting else []
    num_first = num_decoder_steps(settings)
    generator = LABELLED_BATCHES.generator(seed)
    validation_steps = steps_with_validation(settings.num_steps)
    num_early = sum(step <= num_first for step in validation_steps)  # while the encoder waits: no reason to end
    losses: list[float] = []
    unread: list[torch.Tensor] = []
    scores: list[float] = []
    best = None
    seconds = 0.0
    _require_gradient(waiting, False)
    set_training(network, unlearnt)
    for step in range(1, settings.num_steps + 1):
        if waiting and step == num_first + 1:
            _require_gradient(waiting, True)
            set_training(network)
        watch = Stopwatch()
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(step, settings)
        images, targets = draw_batch(generator)
        with autocast(images.device.type, settings.precision):
            out = network(images)
        unread.append(_step(optimizer, loss_of(out.float(), targets)))
        if len(unread) >= steps_a_reading(images.device) or step in validation_steps:
            losses += _read(unread, step)
            unread = []
        seconds += watch.seconds
        if validate is not None and step in validation_steps:
            scores.append(validate())
            set_training(network, unlearnt)
            best_at = int(np.argmax(scores))
            if len(scores) - 1 == best_at:  # no better for being as good
                best = copy.deepcopy(network.state_dict())
            if settings.patience and len(scores) - 1 - max(best_at, num_early) >= settings.patience:
                break
    if best is not None:
        network.load_state_dict(best)
    curve = tuple(zip(validation_steps, scores, strict=False))  # patience may have ended it
    return TrainingOutcome(tuple(losses), _converged_at(curve, losses), seconds / len(losses), curve)


def steps_with_validation(num_steps: int) -> list[int]:
    """The steps, counted from 1, after which to validate: twenty at even distances up to the last, or all of fewer."""
    return sorted({-(-number * num_steps // NUM_VALIDATIONS) for number in range(1, NUM_VALIDATIONS + 1)})


def num_decoder_steps(settings: FinetuneSettings) -> int:
    """Number of steps in which the encoder is not trained yet: `settings.decoder_first` of all, and never all."""
    if settings.decoder_first is None:
        return 0
    return min(max(1, round(settings.decoder_first * settings.num_steps)), settings.num_steps - 1)


def rate_factor(step: int, settings: FinetuneSettings) -> float:
    """Factor of the learning rate at a step, counted from 1: a linear rise, then half a cosine; or constant.

    With `settings.decoder_first` it rises and falls twice: for the decoder alone, then for all.
    """
    if settings.schedule == "constant":
        return 1.0
    num_first = num_decoder_steps(settings)
    is_first = step <= num_first
    step, num_steps = (step, num_first) if is_first else (step - num_first, settings.num_steps - num_first)
    num_rising = max(1, round(WARM_UP * num_steps))
    if step <= num_rising:
        return step / num_rising
    return (1 + math.cos(math.pi * (step - num_rising) / (num_steps - num_rising + 1))) / 2


def to_device(network: nn.Module, device: str) -> None:
    """Move a network in place to a device, its weights in channels-last format."""
    prefer_speed(device)
    sides = next((weight.ndim for weight in network.parameters() if weight.ndim in MEMORY_FORMAT), 5)
    network.to(device, memory_format=MEMORY_FORMAT[sides])  # type: ignore[call-overload] # not among torch's overloads


def set_training(network: nn.Module, unlearnt: Sequence[nn.Module] = ()) -> None:
    """Put a network in training mode, except for frozen parts, whose batch norms keep their statistics.

    unlearnt: norms that have none to keep and learn them all the same, as of weights that came without.
    """
    network.train()
    for part in network.children():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()
    for norm in unlearnt:
        norm.train()


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
    """One step down the gradient of a loss, without waiting for the device; returns the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _read(unread: Sequence[torch.Tensor], last: int) -> list[float]:
    """The losses of steps up to number `last`, for which the device is waited; TrainingError if one is not finite."""
    losses: list[float] = torch.stack(list(unread)).tolist()
    for step, loss in enumerate(losses, last - len(losses) + 1):
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {step}: lower finetune.learning_rate")
    return losses


def _encoder_weights(network: nn.Module) -> list[nn.Parameter]:
    """Of the weights that are trained, those of the encoder."""
    return [weight for weight in network.get_submodule("encoder").parameters() if weight.requires_grad]


def _unlearnt_norms(network: nn.Module) -> list[nn.Module]:
    """The encoder's batch norms that have seen no batch yet, so that their running statistics are made up."""
    norms = batch_norms(network.get_submodule("encoder"))
    return [norm for norm in norms if norm.num_batches_tracked is not None and not norm.num_batches_tracked]


def _require_gradient(weights: Sequence[nn.Parameter], wanted: bool) -> None:
    for weight in weights:
        weight.requires_grad_(wanted)
        weight.grad = None  # the optimizer leaves alone what has none


def smoothed(losses: Sequence[float]) -> list[float]:
    """Moving averages over a tenth of all steps."""
    width = max(1, len(losses) // 10)
    return np.convolve(losses, np.full(width, 1 / width), mode="valid").tolist()


def _converged_at(curve: Sequence[tuple[int, float]], losses: Sequence[float]) -> int:
    """The step at which training had converged, by its validations' scores, or without any by its losses."""
    if curve:
        return curve[num_until_converged([score for _, score in curve]) - 1][0]
    return num_until_converged([-loss for loss in smoothed(losses)])


def num_until_converged(scores: Sequence[float]) -> int:
    """The number, counted from 1, of the first score that has covered 95 % of the way from the first to the best."""
    threshold = scores[0] + CONVERGED * (max(scores) - scores[0])
    return next(number for number, score in enumerate(scores, 1) if score >= threshold)
