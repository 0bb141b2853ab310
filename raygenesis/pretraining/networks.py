"""The U-Net of the method, in 2D and 3D, with a classification head on its bottleneck (METHOD: network)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NUM_LEVELS = 4


def widths_of(base_width: int) -> list[int]:
    """Channels that leave each encoder level: 64, 128, 256, 512 for the paper's base width of 32."""
    return [base_width * 2 ** (level + 1) for level in range(NUM_LEVELS)]


class DoubleConv(nn.Sequential):
    """Twice: 3×3(×3) convolution, batch norm, ReLU."""

    def __init__(self, ndim: int, num_in: int, num_middle: int, num_out: int) -> None:
        super().__init__(
            CONV[ndim](num_in, num_middle, 3, padding=1), NORM[ndim](num_middle), nn.ReLU(inplace=True),
            CONV[ndim](num_middle, num_out, 3, padding=1), NORM[ndim](num_out), nn.ReLU(inplace=True),
        )  # fmt: skip


class Encoder(nn.Module):
    """[n, channels, z, y, x] → features of each level, finest first; the last is the bottleneck at 1/8 size."""

    def __init__(self, ndim: int = 3, base_width: int = 32, num_channels: int = 1) -> None:
        super().__init__()
        widths = widths_of(base_width)
        num_in = [num_channels, *widths[:-1]]
        # The second convolution of a level doubles the channels of its first.
        self.levels = nn.ModuleList(
            DoubleConv(ndim, before, max(before, base_width) if level else base_width, after)
            for level, (before, after) in enumerate(zip(num_in, widths, strict=True))
        )
        self.pool = POOL[ndim](2)
        self.num_features = widths[-1]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for number, level in enumerate(self.levels):
            images = level(self.pool(images) if number else images)
            features.append(images)
        return features

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """[n, channels, z, y, x] → [n, num_features]: the bottleneck's mean over space."""
        return self(images)[-1].flatten(2).mean(2)


class Decoder(nn.Module):
    """Features of all levels → [n, num_out, z, y, x], without an activation."""

    def __init__(self, ndim: int = 3, base_width: int = 32, num_out: int = 1) -> None:
        super().__init__()
        widths = widths_of(base_width)
        pairs = list(zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True))
        self.ups = nn.ModuleList(TRANSPOSED[ndim](below, below, 2, stride=2) for _, below in pairs)
        self.levels = nn.ModuleList(DoubleConv(ndim, skip + below, skip, skip) for skip, below in pairs)
        self.output = CONV[ndim](widths[0], num_out, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        now = features[-1]
        for up, level, skip in zip(self.ups, self.levels, reversed(features[:-1]), strict=True):
            now = level(torch.cat([skip, up(now)], 1))
        return self.output(now)


class ClassificationHead(nn.Module):
    """Bottleneck → convolution to twice the channels, global average, linear: logits [n, num_classes]."""

    def __init__(self, ndim: int, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            CONV[ndim](num_features, 2 * num_features, 3, padding=1),
            NORM[ndim](2 * num_features),
            nn.ReLU(inplace=True),
        )
        self.linear = nn.Linear(2 * num_features, num_classes)

    def forward(self, bottleneck: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(bottleneck).flatten(2).mean(2))


class Prediction(NamedTuple):
    """logits: [n, num_classes]; restored: [n, channels, z, y, x] in [0, 1], or None where it was not asked for."""

    logits: torch.Tensor
    restored: torch.Tensor | None


class SemanticGenesis(nn.Module):
    """Encoder, decoder and classification head, trained together (paper section 2, Fig. 1)."""

    def __init__(self, num_classes: int, ndim: int = 3, base_width: int = 32) -> None:
        super().__init__()
        self.encoder = Encoder(ndim, base_width)
        self.decoder = Decoder(ndim, base_width)
        self.head = ClassificationHead(ndim, self.encoder.num_features, num_classes)

    def forward(self, images: torch.Tensor, restore: bool = True) -> Prediction:
        features = self.encoder(images)
        restored = torch.sigmoid(self.decoder(features)) if restore else None
        return Prediction(self.head(features[-1]), restored)


class UNet(nn.Module):
    """Encoder and decoder for a segmentation target: [n, 1, z, y, x] → logits [n, num_out, z, y, x]."""

    def __init__(self, num_out: int, ndim: int = 3, base_width: int = 32) -> None:
        super().__init__()
        self.encoder = Encoder(ndim, base_width)
        self.decoder = Decoder(ndim, base_width, num_out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images))
