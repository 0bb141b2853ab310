"""The interface between the epoch loop and what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raygenesis.errors import RaygenesisError
from raygenesis.training.feeding import Batch
from raygenesis.training.records import EpochRow


class TrainingError(RaygenesisError):
    """Training cannot go on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a step changes the weights.

    Attributes:
        num_pieces: Pieces of a batch, whose gradients are accumulated; batch norm sees one piece at a time.
        clip_norm: Norm to which longer gradients are clipped; no clipping when None.
        average_decay: Decay of the moving average of the weights, which is then what is evaluated and kept; no average
            when None.
        scales_loss: Whether the loss is scaled, so that gradients do not vanish in float16.
    """

    num_pieces: int = 1
    clip_norm: float | None = None
    average_decay: float | None = None
    scales_loss: bool = False


PLAIN = Tuning()


class Experiment(Protocol):
    """A training: its data, model, losses and figures. Implementations must be picklable."""

    @property
    def name(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def num_epochs(self) -> int: ...

    @property
    def sample_key(self) -> str: ...

    @property
    def sample_shape(self) -> tuple[int, ...]: ...

    @property
    def tuning(self) -> Tuning: ...

    def build(self) -> nn.Module:
        """Build the model, its weights drawn from the seed."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer: ...

    def begin_epoch(self, model: nn.Module, epoch: int) -> str:
        """Set which parameters are trained in this epoch; returns the name of its phase."""

    def learning_rate(self, epoch: int, share: float) -> float:
        """Learning rate of a step after which this share of the epoch, in (0, 1], is done."""

    def rate_factors(self, epoch: int) -> Sequence[float]:
        """Factors of the learning rate in this epoch, one a group of the optimizer's parameters."""

    def learns_from(self, columns: Mapping[str, NDArray[Any]], epoch: int) -> NDArray[np.bool_] | None:
        """Which samples this epoch learns from, bool [n], by the samples' columns; None for all."""

    def pairs(self, columns: Mapping[str, NDArray[Any]], epoch: int) -> NDArray[np.int64] | None:
        """Pairs of samples that lie in one batch, in the epoch's order: their row numbers, int64 [p, 2].

        columns: of all training samples. None where samples come one by one, in the order of the seed.
        """

    def losses(
        self, model: nn.Module, batch: Batch, epoch: int, teacher: nn.Module | None = None
    ) -> dict[str, torch.Tensor]:
        """Means over the batch, scalars; `loss` is minimised. teacher: the moving average of the model, if there is."""

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sums over a batch of held-out samples, tensors of any shape; `count` is the number of samples."""

    def figures(self, means: dict[str, torch.Tensor]) -> dict[str, float]:
        """Figures of an epoch's row, from the means over all held-out samples, float64 on the CPU."""

    def score(self, row: EpochRow) -> float:
        """What is least in the best epoch."""

    def should_stop(self, history: Sequence[EpochRow]) -> bool:
        """Whether training ends before its last epoch."""

    def warnings(self, history: Sequence[EpochRow]) -> dict[str, str]:
        """What goes wrong, in sentences, by kind; each kind is reported once."""


def best_of(experiment: Experiment, history: Sequence[EpochRow]) -> EpochRow:
    """The row of the epoch whose weights are kept: the newest of those with the least score."""
    return min(reversed(history), key=experiment.score)
