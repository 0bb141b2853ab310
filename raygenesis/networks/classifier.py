"""The classifier of a target task: an encoder, its features' mean over space, and a small head."""

from __future__ import annotations

import torch
from torch import nn

from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.layers import pooled

# Units between the pooled bottleneck and the answer (METHOD, target tasks).
HIDDEN = 1024


class Classifier(nn.Module):
    """Encoder → mean over space → 1024 units → num_out answers (METHOD, target tasks)."""

    def __init__(self, encoder: ImageEncoder, num_out: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(encoder.num_features, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, num_out)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(pooled(self.encoder(images)[-1]))
