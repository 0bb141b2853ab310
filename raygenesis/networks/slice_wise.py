"""2D networks on 3D images, slice by slice: the 2D solutions of a 3D target that the paper's Fig. 3 compares."""

from __future__ import annotations

import torch

from raygenesis.networks.decoder import ImageDecoder
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.layers import run_layer
from raygenesis.networks.network import UNet


class SliceWiseEncoder(ImageEncoder):
    """[n, channels, z, y, x] → the 2D encoder's features of each level as volumes, [n, c, z, y / s, x / s].

    The slices of all images are one batch, to batch norm too. `embed` pools over all slices of an image.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_features = encoder.num_features

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = run_layer(self.encoder, slices_of(images), recompute=self.gradient_checkpointing)
        return [volumes_of(level, len(images)) for level in features]


class SliceWiseDecoder(ImageDecoder):
    """A 2D decoder on the features of a SliceWiseEncoder."""

    def __init__(self, decoder: ImageDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.output_layer = f"decoder.{decoder.output_layer}"

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        slices = [slices_of(level) for level in features]
        return volumes_of(run_layer(self.decoder, slices, recompute=self.gradient_checkpointing), len(features[-1]))

    def levels_of(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        levels = self.decoder.levels_of([slices_of(level) for level in features])
        return [volumes_of(level, len(features[-1])) for level in levels]


def slice_wise(unet: UNet) -> UNet:
    """Change a 2D U-Net, in place, to one for 3D images: [n, 1, z, y, x] → logits [n, num_out, z, y, x]."""
    unet.encoder, unet.decoder = SliceWiseEncoder(unet.encoder), SliceWiseDecoder(unet.decoder)
    return unet


def slices_of(volumes: torch.Tensor) -> torch.Tensor:
    """[n, channels, z, y, x] → [n × z, channels, y, x]."""
    return volumes.transpose(1, 2).flatten(0, 1)


def volumes_of(slices: torch.Tensor, num_volumes: int) -> torch.Tensor:
    """[num_volumes × z, channels, y, x] → [num_volumes, channels, z, y, x]."""
    return slices.unflatten(0, (num_volumes, -1)).transpose(1, 2)
