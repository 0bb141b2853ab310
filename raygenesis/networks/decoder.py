"""What every decoder has in common."""

from __future__ import annotations

import torch
from torch import nn


class ImageDecoder(nn.Module):
    """Features of all levels, finest first → [n, num_out, z, y, x] (2D: [n, num_out, y, x]), without an activation.

    Attributes:
        output_layer: Name of the submodule whose channels are `num_out`; a new target gets a new one.
        gradient_checkpointing: Whether activations are computed again in the backward pass instead of being kept.
    """

    output_layer: str
    gradient_checkpointing: bool = False

    def levels_of(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The features of each of the decoder's levels, coarsest first. Raises NotImplementedError if it has none."""
        raise NotImplementedError(f"{type(self).__name__} has no levels to read")
