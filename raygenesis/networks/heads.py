"""Heads that answer at the bottleneck."""

from __future__ import annotations

import torch
from torch import nn

from raygenesis.networks.layers import CONV, norm_layer, pooled


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
        return self.linear(pooled(self.conv(bottleneck)))


class RubiksCubeHead(nn.Module):
    """The pieces of a cube, one after another → logits [n, num_classes + 2 × pieces]: their order, and who was turned.

    Takes the bottlenecks of all 2**ndim pieces of each of n cubes, [n × pieces, num_features, ...].
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
        return self.layers(pooled(bottleneck).view(len(bottleneck) // self.num_pieces, -1))


HEADS = {"classification": ClassificationHead, "rubiks-cube": RubiksCubeHead}
