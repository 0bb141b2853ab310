"""Networks built from an architecture: for pretext tasks, and for segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from raygenesis.networks import i3d
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.decoder import ImageDecoder
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.heads import HEADS, ProjectionHead
from raygenesis.networks.layers import global_average_pool, swap_pairs
from raygenesis.networks.unet import UNetDecoder, UNetEncoder


class Prediction(NamedTuple):
    """What a PretextNetwork returns, float32; what was not computed is None, but for the embedding.

    embedding: [n, num_features]; logits: [n, num_classes]; restored: [n, 1, z, y, x] in [0, 1]; projected: [n,
    projection_size]; crossed: as `restored`, with each other's bottleneck.
    """

    embedding: torch.Tensor
    logits: torch.Tensor | None
    restored: torch.Tensor | None
    projected: torch.Tensor | None = None
    crossed: torch.Tensor | None = None


class PretextNetwork(nn.Module):
    """Encoder, decoder and head, trained together (paper section 2, Fig. 1)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = build_encoder(architecture)
        self.decoder = build_decoder(architecture, 1) if architecture.restores else None
        self.head = None
        if architecture.head is not None:
            self.head = HEADS[architecture.head](
                architecture.ndim, self.encoder.num_features, architecture.num_classes, architecture.norm
            )

        self.projection = None
        if architecture.projection_size:
            self.projection = ProjectionHead(self.encoder.num_features, architecture.projection_size)

    def forward(self, images: torch.Tensor, restore: bool = True, cross: bool = False) -> Prediction:
        """Encode, classify and decode images, float32 [n, 1, z, y, x] in [0, 1].

        Args:
            images: With `cross` in pairs, one after the other.
            restore: Whether to decode the features of each image, where there is a decoder.
            cross: Whether to decode them, with the bottleneck of its partner in place of its own, as well.
        """
        features = self.encoder(images)
        restored = self._decode(features) if restore else None
        crossed = self._decode([*features[:-1], swap_pairs(features[-1])]) if cross else None
        logits = None if self.head is None else self.head(features[-1]).float()
        embedding = global_average_pool(features[-1])
        projected = None if self.projection is None else self.projection(embedding).float()
        return Prediction(embedding.float(), logits, restored, projected, crossed)

    def project(self, images: torch.Tensor) -> torch.Tensor:
        """Projected embeddings of images, float32 [n, projection_size]; ValueError without a projection."""
        if self.projection is None:
            raise ValueError("this network has no projection")
        return self.projection(global_average_pool(self.encoder(images)[-1])).float()

    def _decode(self, features: list[torch.Tensor]) -> torch.Tensor | None:
        if self.decoder is None:
            return None
        seen = features if self.architecture.skips else without_skips(features)
        # In float32 also under autocast: a sigmoid of 8 bits is too coarse an image.
        return torch.sigmoid(self.decoder(seen).float())

    @property
    def unet_decoder(self) -> ImageDecoder | None:
        """The decoder as a U-Net can go on from it; None without one, or where it has learnt without skips."""
        return self.decoder if self.architecture.skips else None


class UNet(nn.Module):
    """Encoder and decoder for a segmentation target: [n, 1, z, y, x] → logits [n, num_out, z, y, x].

    The decoder has skips, whatever the architecture that weights were pretrained in.
    """

    def __init__(self, num_out: int, architecture: Architecture | None = None) -> None:
        super().__init__()
        architecture = replace(architecture or Architecture(), skips=True)
        self.encoder = build_encoder(architecture)
        self.decoder = build_decoder(architecture, num_out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images))


class Builder(NamedTuple):
    """What builds the encoder of an architecture, and its decoder with a number of output channels."""

    encoder: Callable[[Architecture], ImageEncoder]
    decoder: Callable[[Architecture, int], ImageDecoder]


def _unet_encoder(architecture: Architecture) -> ImageEncoder:
    return UNetEncoder(architecture.ndim, architecture.base_width, architecture.norm)


def _unet_decoder(architecture: Architecture, num_out: int) -> ImageDecoder:
    return UNetDecoder(architecture.ndim, architecture.base_width, num_out, architecture.norm, skips=architecture.skips)


def _monai_encoder(architecture: Architecture) -> ImageEncoder:
    from raygenesis.networks import monai_networks  # MONAI takes seconds to import

    return monai_networks.build_encoder(architecture)


def _monai_decoder(architecture: Architecture, num_out: int) -> ImageDecoder:
    from raygenesis.networks import monai_networks

    return monai_networks.build_decoder(architecture, num_out)


# By the name of the network (pretraining.network); all others are MONAI's.
BUILDERS = {"unet": Builder(_unet_encoder, _unet_decoder), "i3d": Builder(i3d.build_encoder, i3d.build_decoder)}
MONAI = Builder(_monai_encoder, _monai_decoder)


def build_encoder(architecture: Architecture) -> ImageEncoder:
    """Build the encoder of an architecture, for images of one channel, with random weights."""
    return BUILDERS.get(architecture.network, MONAI).encoder(architecture)


def build_decoder(architecture: Architecture, num_out: int) -> ImageDecoder:
    """Build the decoder of an architecture: from its encoder's features to images of `num_out` channels."""
    return BUILDERS.get(architecture.network, MONAI).decoder(architecture, num_out)


def without_skips(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The features of all levels, finest first, with zeros, which take no memory, in place of all but the bottleneck's.

    So the decoders of all networks can do without skips; the U-Net's has no layers for them either.
    """
    return [*(level.new_zeros(()).expand(level.shape) for level in features[:-1]), features[-1]]


def enable_gradient_checkpointing(model: PretextNetwork) -> None:
    """Have encoder and decoder compute activations again in the backward pass instead of keeping them."""
    model.encoder.gradient_checkpointing = True
    if model.decoder is not None:
        model.decoder.gradient_checkpointing = True


def num_parameters(model: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())
