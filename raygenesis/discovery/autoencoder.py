"""The auto-encoder whose latent vector describes a whole scan (paper section 2.1).

It has no skip connections: everything the decoder knows passes through the latent vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from raygenesis.settings import AutoencoderSettings
from raygenesis.training.experiment import PLAIN, Tuning
from raygenesis.training.feeding import Batch

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

# The input is halved until no side is longer than this; the rest is one linear layer.
BOTTOM_SIDE = 8


class Autoencoder(nn.Module):
    """Strided convolutions to a latent vector and back.

    encode: [n, 1, *input_shape] → [n, latent_size]; forward: the restored input, same shape, in [0, 1].
    """

    def __init__(self, input_shape: tuple[int, ...], base_width: int, latent_size: int) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        ndim = len(input_shape)
        num_levels = _num_levels(input_shape)
        widths = [base_width * 2**level for level in range(num_levels)]
        sides = [side // 2**num_levels for side in input_shape]
        self._bottom = (widths[-1], *sides)
        num_bottom = math.prod(self._bottom)
        down: list[nn.Module] = []
        for width_in, width_out in zip([1, *widths], widths, strict=False):
            down += [CONV[ndim](width_in, width_out, 3, stride=2, padding=1), NORM[ndim](width_out), nn.LeakyReLU()]
        self.down = nn.Sequential(*down)
        self.to_latent = nn.Linear(num_bottom, latent_size)
        self.from_latent = nn.Linear(latent_size, num_bottom)
        up: list[nn.Module] = []
        for width_in, width_out in zip(reversed(widths), [*reversed(widths[:-1]), base_width], strict=True):
            up += [TRANSPOSED[ndim](width_in, width_out, 2, stride=2), NORM[ndim](width_out), nn.LeakyReLU()]
        self.up = nn.Sequential(*up, CONV[ndim](base_width, 1, 3, padding=1), nn.Sigmoid())

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.to_latent(self.down(volumes).flatten(1))

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.up(self.from_latent(self.encode(volumes)).unflatten(1, self._bottom))


def _num_levels(input_shape: tuple[int, ...]) -> int:
    """Halvings until no side is longer than BOTTOM_SIDE, as far as every side can be halved."""
    levels = 1
    while max(input_shape) >> levels > BOTTOM_SIDE and all(side % 2 ** (levels + 1) == 0 for side in input_shape):
        levels += 1
    return levels


@dataclass(frozen=True)
class IdentityMapping:
    """Training the auto-encoder to restore its input: mean squared error, Adam."""

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
        return torch.optim.Adam(model.parameters(), lr=self.settings.learning_rate)

    def begin_epoch(self, model: nn.Module, epoch: int) -> str:
        return "identity"

    def learning_rate(self, epoch: int, share: float) -> float:
        return self.settings.learning_rate

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
        return {"loss": functional.mse_loss(model(batch.cubes), batch.cubes)}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        error = (model(batch.cubes) - batch.cubes).square().flatten(1).mean(1)
        return {"mse": error.sum(), "count": error.new_tensor(len(error))}

    def figures(self, means: dict[str, torch.Tensor]) -> dict[str, float]:
        return {name: value.item() for name, value in means.items()}

    def score(self, row: Mapping[str, Any]) -> float:
        return row["val_mse"]

    def should_stop(self, history: Sequence[dict[str, Any]]) -> bool:
        scores = [self.score(row) for row in history]
        return bool(scores) and len(scores) - 1 - scores.index(min(scores)) >= self.settings.patience

    def warnings(self, history: Sequence[dict[str, Any]]) -> dict[str, str]:
        return {}
