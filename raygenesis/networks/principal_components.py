"""Principal components as a network: the linear baseline of what describes a whole scan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class PrincipalComponents(nn.Module):
    """The directions in which scans at the coarse level vary most, and the mean scan.

    encode: float32 [n, 1, *input_shape] → [n, latent_size]; forward: the scans as the components restore them, of the
    same shape. `mean` ([voxels]) and `components` ([latent_size, voxels], of unit length) are zero until they are set.
    """

    mean: torch.Tensor
    components: torch.Tensor

    def __init__(self, input_shape: Sequence[int], latent_size: int) -> None:
        super().__init__()
        self.input_shape, self.latent_size = tuple(input_shape), latent_size
        self.register_buffer("mean", torch.zeros(math.prod(self.input_shape)))
        self.register_buffer("components", torch.zeros(latent_size, math.prod(self.input_shape)))

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        return (volumes.flatten(1) - self.mean) @ self.components.T

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return (self.encode(volumes) @ self.components + self.mean).reshape(volumes.shape)
