"""Training the auto-encoder whose latent vector describes a whole scan (paper section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.settings import AutoencoderSettings
from raygenesis.training.devices import is_fused
from raygenesis.training.experiment import PLAIN, Tuning
from raygenesis.training.feeding import Batch
from raygenesis.training.precision import autocast
from raygenesis.training.records import EpochRow


@dataclass(frozen=True)
class IdentityMapping:
    """The experiment of training the auto-encoder to restore its input: mean squared error, Adam."""

    settings: AutoencoderSettings
    seed: int
    name: str = "auto-encoder"
    sample_key: str = "number"
    tuning: Tuning = PLAIN

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def num_epochs(self) -> int:
        return self.settings.num_epochs

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.settings.input_shape

    def build(self) -> Autoencoder:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return Autoencoder(self.settings.input_shape, self.settings.base_width, self.settings.latent_size)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.settings.learning_rate, fused=is_fused(model))

    def begin_epoch(self, model: nn.Module, epoch: int) -> str:
        return "identity"

    def learning_rate(self, epoch: int, share: float) -> float:
        return self.settings.learning_rate

    def rate_factors(self, epoch: int) -> Sequence[float]:
        return (1.0,)

    def learns_from(self, columns: Mapping[str, NDArray[Any]], epoch: int) -> None:
        return None

    def pairs(self, columns: Mapping[str, NDArray[Any]], epoch: int) -> None:
        return None

    def losses(
        self, model: nn.Module, batch: Batch, epoch: int, teacher: nn.Module | None = None
    ) -> dict[str, torch.Tensor]:
        return {"loss": functional.mse_loss(self._restored(model, batch), batch.cubes)}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        error = (self._restored(model, batch) - batch.cubes).square().flatten(1).mean(1)
        return {"mse": error.sum(), "count": error.new_full((), len(error))}

    def _restored(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        with autocast(batch.cubes.device.type, self.settings.precision):
            restored: torch.Tensor = model(batch.cubes)
        return restored.to(batch.cubes.dtype)

    def figures(self, means: dict[str, torch.Tensor]) -> dict[str, float]:
        return {name: value.item() for name, value in means.items()}

    def score(self, row: EpochRow) -> float:
        return row["val_mse"]

    def should_stop(self, history: Sequence[EpochRow]) -> bool:
        scores = [self.score(row) for row in history]
        return bool(scores) and len(scores) - 1 - scores.index(min(scores)) >= self.settings.patience

    def warnings(self, history: Sequence[EpochRow]) -> dict[str, str]:
        return {}
