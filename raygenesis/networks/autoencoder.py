"""The network of the auto-encoder whose latent vector describes a whole scan (paper section 2.1)."""

from __future__ import annotations

import math

import torch
from torch import nn

from raygenesis.networks.layers import BATCH_NORM, CONV, TRANSPOSED

# The input is halved until no side is longer than this; the rest is one linear layer.
BOTTOM_SIDE = 8


class Autoencoder(nn.Module):
    """Strided convolutions to a latent vector and back.

    There are no skip connections: everything that the decoder knows passes through the latent vector.

    encode: float32 [n, 1, *input_shape] → [n, latent_size]; forward: the restored input, same shape, in [0, 1].
    """

    def __init__(self, input_shape: tuple[int, ...], base_width: int, latent_size: int) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        ndim = len(input_shape)
        conv, transposed, norm = CONV[ndim], TRANSPOSED[ndim], BATCH_NORM[ndim]
        num_levels = _num_levels(input_shape)
        widths = [base_width * 2**level for level in range(num_levels)]
        sides = [side // 2**num_levels for side in input_shape]
        self._bottom = (widths[-1], *sides)
        num_bottom = math.prod(self._bottom)
        down: list[nn.Module] = []
        for width_in, width_out in zip([1, *widths], widths, strict=False):
            down += [conv(width_in, width_out, 3, stride=2, padding=1), norm(width_out), nn.LeakyReLU()]
        self.down = nn.Sequential(*down)
        self.to_latent = nn.Linear(num_bottom, latent_size)
        self.from_latent = nn.Linear(latent_size, num_bottom)
        up: list[nn.Module] = []
        for width_in, width_out in zip(reversed(widths), [*reversed(widths[:-1]), base_width], strict=True):
            up += [transposed(width_in, width_out, 2, stride=2), norm(width_out), nn.LeakyReLU()]
        self.up = nn.Sequential(*up, conv(base_width, 1, 3, padding=1), nn.Sigmoid())

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
