"""The classifier of a target task."""

from __future__ import annotations

import torch
from torch import nn

from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.layers import global_average_pool

NUM_HIDDEN = 1024


class Classifier(nn.Module):
    """[n, 1, z, y, x] → logits [n, num_out]: encoder, mean over space, 1024 hidden units (paper, section 3)."""

    def __init__(self, encoder: ImageEncoder, num_out: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(encoder.num_features, NUM_HIDDEN), nn.ReLU(inplace=True), nn.Linear(NUM_HIDDEN, num_out)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(global_average_pool(self.encoder(images)[-1]))
