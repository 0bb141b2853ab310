"""The learning rate over training: the paper's steps (section 3), or a cosine; with a warm-up, by phase and batch."""

from __future__ import annotations

import math

from raygenesis.settings import PretrainingSettings


def learning_rate(settings: PretrainingSettings, epoch: int, share: float, alone: bool) -> float:
    """Learning rate of a step.

    Args:
        settings: Schedule, rates, number of epochs, and the batch size that the rates are scaled by.
        epoch: Epoch of the step, from 0.
        share: Share of the epoch, in (0, 1], that is done after the step.
        alone: Whether classification is learnt alone, which may have a rate of its own.
    """
    base = settings.learning_rate
    if alone and settings.classification_learning_rate is not None:
        base = settings.classification_learning_rate
    if settings.scale_learning_rate is not None:
        base *= settings.batch_size / settings.scale_learning_rate
    done, warm_up = epoch + share, settings.warmup_epochs
    if done < warm_up:
        return base * done / warm_up
    if settings.schedule == "step":
        return base * settings.decay_factor ** (epoch // settings.decay_epochs)
    total = settings.num_classification_epochs + settings.num_joint_epochs
    return base * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (total - warm_up)))
