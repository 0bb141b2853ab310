"""What describes a whole scan by a vector: the auto-encoder, principal components, or a pretrained network.

All are torch modules with `input_shape` and `encode`: float32 [n, 1, *input_shape] in [0, 1] → [n, latent_size].
`networks/weights/scan_encoders.py` saves and loads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raygenesis.networks.autoencoder import Autoencoder
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.principal_components import PrincipalComponents


class PretrainedScanEncoder(nn.Module):
    """The encoder of a pretraining run, which takes the whole scan as one image."""

    def __init__(self, encoder: ImageEncoder, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.input_shape = encoder, tuple(input_shape)

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.encoder.embed(volumes)


ScanEncoder = Autoencoder | PrincipalComponents | PretrainedScanEncoder


def restore(model: ScanEncoder, scan: NDArray[np.float32]) -> NDArray[np.float32]:
    """A scan of the model's input shape as the model restores it from its vector.

    model: an auto-encoder or principal components; a pretraining run's encoder cannot restore.
    """
    with torch.inference_mode():
        return model(torch.from_numpy(scan)[None, None])[0, 0].numpy()
