"""The U-Net of the paper, in 2D and 3D, as an encoder and a decoder (Haghighi et al. 2020, section 3)."""

from __future__ import annotations

import torch
from torch import nn

from raygenesis.networks.decoder import ImageDecoder
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.layers import CONV, POOL, TRANSPOSED, DoubleConv, run_layer

NUM_LEVELS = 4


def level_widths(base_width: int) -> list[int]:
    """Channels that leave each encoder level: 64, 128, 256, 512 for the paper's base width of 32."""
    return [base_width * 2 ** (level + 1) for level in range(NUM_LEVELS)]


class UNetEncoder(ImageEncoder):
    """The U-Net's encoder: its bottleneck has 1/8 of each side."""

    def __init__(self, ndim: int = 3, base_width: int = 32, norm: str = "batch") -> None:
        super().__init__()
        widths = level_widths(base_width)
        num_in = [1, *widths[:-1]]
        # The second convolution of a level doubles the channels of its first.
        self.levels = nn.ModuleList(
            DoubleConv(ndim, before, max(before, base_width) if level else base_width, after, norm)
            for level, (before, after) in enumerate(zip(num_in, widths, strict=True))
        )
        self.pool = POOL[ndim](2)
        self.num_features = widths[-1]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for number, level in enumerate(self.levels):
            images = run_layer(level, self.pool(images) if number else images, recompute=self.gradient_checkpointing)
            features.append(images)
        return features


class UNetDecoder(ImageDecoder):
    """The U-Net's decoder: transposed convolutions and, unless `skips` is false, skips from the encoder's levels."""

    output_layer = "output"

    def __init__(
        self, ndim: int = 3, base_width: int = 32, num_out: int = 1, norm: str = "batch", skips: bool = True
    ) -> None:
        super().__init__()
        self.skips = skips
        widths = level_widths(base_width)
        pairs = list(zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True))
        self.ups = nn.ModuleList(TRANSPOSED[ndim](width, width, 2, stride=2) for _, width in pairs)
        self.levels = nn.ModuleList(DoubleConv(ndim, skip * skips + below, skip, skip, norm) for skip, below in pairs)
        self.output = CONV[ndim](widths[0], num_out, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.output(self.levels_of(features)[-1])

    def levels_of(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        below, found = features[-1], []
        for up, level, skip in zip(self.ups, self.levels, reversed(features[:-1]), strict=True):
            # What comes from below first: published weights expect it.
            seen = torch.cat([up(below), skip], 1) if self.skips else up(below)
            below = run_layer(level, seen, recompute=self.gradient_checkpointing)
            found.append(below)
        return found
