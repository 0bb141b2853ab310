"""What training records: a row a step, a row an epoch, and the state that a checkpoint holds.

All are dictionaries, as PyArrow and torch hand them over; a row has the figures of its task alone.
"""

from __future__ import annotations

from typing import Any, Required, TypedDict

import torch


class StepRow(TypedDict, total=False):
    """One step: a row of `steps/`. Figures are means over the global batch, of all workers.

    step: number of the step since training began. share: of the epoch that is done after the step, in (0, 1]. cubes:
    samples of the global batch. seconds: of the step, of which `waited` were spent waiting for data. gradient_norm:
    infinite or NaN where a scaled loss overflowed.
    """

    step: Required[int]
    epoch: Required[int]
    phase: Required[str]
    learning_rate: Required[float]
    loss: Required[float]
    gradient_norm: Required[float]
    classification: float
    accuracy: float
    restoration: float
    contrast: float
    contrast_chance: float
    cross_restoration: float
    share: Required[float]
    cubes: Required[int]
    seconds: Required[float]
    waited: Required[float]


class EpochRow(TypedDict, total=False):
    """One epoch: a row of `metrics.parquet`. `train_` figures are means over its steps, `val_` over held-out samples.

    learning_rate: at its end. seconds: of its steps; gap: share of these that was spent waiting for data. A figure that
    was finite in no step, or that a table has for other epochs only, is None.
    """

    epoch: Required[int]
    phase: Required[str]
    learning_rate: Required[float]
    train_loss: float
    train_gradient_norm: float | None
    train_classification: float | None
    train_accuracy: float | None
    train_restoration: float | None
    train_contrast: float | None
    train_contrast_chance: float | None
    train_cross_restoration: float | None
    seconds: Required[float]
    cubes_per_s: Required[float]
    gap: Required[float]
    # Of the auto-encoder of scans.
    val_mse: float
    # Of pretext tasks: losses and accuracy, errors of answers without learning, and the spread of embeddings.
    val_loss: float
    val_classification: float
    val_accuracy: float
    val_restoration: float
    val_identity: float
    val_blank: float
    val_separation: float
    val_embedding_variance: float
    val_effective_rank: float


class TrainingState(TypedDict):
    """What a checkpoint holds: enough to go on as if training had never stopped.

    model, average, best: tensors by name (average: also of its own counter), of which `best` are the best epoch's.
    optimizer, scaler: torch's own state. step: steps done in the epoch that is running; steps_done: in all epochs.
    sums: figures of the epoch that is running, name → sum and weight.
    """

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    average: dict[str, Any] | None
    best: dict[str, torch.Tensor]
    history: list[EpochRow]
    step: int
    steps_done: int
    sums: dict[str, list[float]]


class TrainingStatus(TypedDict):
    """How training goes at the moment: `progress.json`. Figures are means since the status before.

    epochs: done, with the share of the running one. gap: share of the time that was spent waiting for data. memory_gib:
    peak, of the GPU if there is one. lost: why trackers are left out.
    """

    epochs: float
    phase: str
    step: int
    loss: float
    cubes_per_s: float
    gap: float
    memory_gib: float
    lost: list[str]
