"""What every encoder has in common."""

from __future__ import annotations

import torch
from torch import nn

from raygenesis.networks.layers import has_batch_statistics, pooled


class ImageEncoder(nn.Module):
    """[n, 1, z, y, x] → features of each level, finest first; the last is the bottleneck.

    saves_memory: compute activations again when they are needed for gradients (`saving_memory`).
    """

    num_features: int
    saves_memory = False

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 1, z, y, x] → [n, num_features]: the bottleneck's mean over space.

        In evaluation an image's vector does not depend on the others: norms that know no statistics but a batch's own
        are given each image alone, which must have more than one voxel at the bottleneck.
        """
        parts = images.split(1) if not self.training and has_batch_statistics(self) else [images]
        return torch.cat([pooled(self(part)[-1]) for part in parts])
