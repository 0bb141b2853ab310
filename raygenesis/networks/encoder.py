"""What every encoder has in common."""

from __future__ import annotations

import torch
from torch import nn

from raygenesis.networks.layers import global_average_pool, has_batch_statistics


class ImageEncoder(nn.Module):
    """float32 [n, 1, z, y, x] (2D: [n, 1, y, x]) → features of each level, finest first; the last is the bottleneck.

    Attributes:
        num_features: Channels of the bottleneck.
        gradient_checkpointing: Whether activations are computed again in the backward pass instead of being kept.
    """

    num_features: int
    gradient_checkpointing: bool = False

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 1, z, y, x] → [n, num_features]: the bottleneck's mean over space.

        In evaluation an image's vector does not depend on the others: norms that know no statistics but a batch's own
        are given each image alone, which must have more than one voxel at the bottleneck.
        """
        parts = images.split(1) if not self.training and has_batch_statistics(self) else [images]
        return torch.cat([global_average_pool(self(part)[-1]) for part in parts])
