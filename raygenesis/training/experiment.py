"""What is trained: everything that the epoch loop does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from raygenesis.errors import RaygenesisError
from raygenesis.training.feeding import Batch

Row = dict[str, Any]


class TrainingError(RaygenesisError):
    """Training cannot go on; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a step changes the weights.

    num_pieces: what a batch is cut into, gone through one after another; batch norm sees one piece at a time.
    clip_norm: the longest gradient; longer ones are shortened. average_decay: of the moving average of the weights that
    is validated and kept; none when None. scales_loss: so that gradients do not vanish in float16.
    """

    num_pieces: int = 1
    clip_norm: float | None = None
    average_decay: float | None = None
    scales_loss: bool = False


PLAIN = Tuning()


class Experiment(Protocol):
    """Must be picklable."""

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
        """The model, seeded."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer: ...

    def begin_epoch(self, model: nn.Module, epoch: int) -> str:
        """Set what changes between epochs (trained parameters); returns the phase's name."""

    def learning_rate(self, epoch: int, share: float) -> float:
        """Of a step after which this share of the epoch, in (0, 1], is done."""

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
        """Means over the batch; `loss` is minimised."""

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sums over the batch, of any shape; `count` is the number of samples."""

    def figures(self, means: dict[str, torch.Tensor]) -> dict[str, float]:
        """What a row tells of the means over all held-out samples, float64 on the CPU."""

    def score(self, row: Mapping[str, Any]) -> float:
        """What the best epoch has least of."""

    def should_stop(self, history: Sequence[Row]) -> bool: ...

    def warnings(self, history: Sequence[Row]) -> dict[str, str]:
        """What goes wrong, in sentences, by kind; each kind is told once."""


def best_of(experiment: Experiment, history: Sequence[Row]) -> Row:
    """The epoch whose weights are kept: of those with the least score the newest."""
    return min(reversed(history), key=experiment.score)
