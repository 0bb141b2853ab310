"""Heads on the bottleneck, as a table."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from raygenesis.networks.layers import CONV, global_average_pool, norm_layer


class ClassificationHead(nn.Module):
    """Bottleneck → convolution to twice the channels, global average, linear: logits [n, num_classes]."""

    def __init__(self, ndim: int, num_features: int, num_classes: int, norm: str = "batch") -> None:
        super().__init__()
        self.conv = nn.Sequential(
            CONV[ndim](num_features, 2 * num_features, 3, padding=1),
            norm_layer(norm, ndim, 2 * num_features),
            nn.ReLU(inplace=True),
        )
        self.linear = nn.Linear(2 * num_features, num_classes)

    def forward(self, bottleneck: torch.Tensor) -> torch.Tensor:
        return self.linear(global_average_pool(self.conv(bottleneck)))


class RubiksCubeHead(nn.Module):
    """Bottlenecks of all 2**ndim pieces of each of n cubes, [n × pieces, num_features, ...] → logits.

    Logits are [n, num_classes + 2 × pieces]: of the pieces' order, then of each piece's turn about two axes (Zhuang et
    al., MICCAI 2019).
    """

    def __init__(self, ndim: int, num_features: int, num_classes: int, norm: str = "batch") -> None:
        super().__init__()
        self.num_pieces = 2**ndim
        self.layers = nn.Sequential(
            nn.Linear(self.num_pieces * num_features, 2 * num_features),
            nn.ReLU(inplace=True),
            nn.Linear(2 * num_features, num_classes + 2 * self.num_pieces),
        )

    def forward(self, bottleneck: torch.Tensor) -> torch.Tensor:
        return self.layers(global_average_pool(bottleneck).view(len(bottleneck) // self.num_pieces, -1))


class ProjectionHead(nn.Sequential):
    """Embeddings [n, num_features] → [n, projection_size], in which pairs are compared (SimCLR, Chen et al. 2020)."""

    def __init__(self, num_features: int, projection_size: int) -> None:
        super().__init__(
            nn.Linear(num_features, num_features), nn.ReLU(inplace=True), nn.Linear(num_features, projection_size)
        )


# By the name that an `Architecture` gives it.
HEADS: dict[str, Callable[[int, int, int, str], nn.Module]] = {
    "classification": ClassificationHead,
    "rubiks-cube": RubiksCubeHead,
}
