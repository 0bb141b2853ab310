"""Networks built from an architecture: for pretext tasks, and for segmentation."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from raygenesis.networks.architecture import Architecture
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.heads import HEADS
from raygenesis.networks.layers import pooled
from raygenesis.networks.unet import Decoder, Encoder


class Prediction(NamedTuple):
    """embedding: [n, num_features]; logits: [n, num_classes]; restored: [n, channels, z, y, x] in [0, 1].

    The last two are None where there is no such part, or where restoring was not asked for.
    """

    embedding: torch.Tensor
    logits: torch.Tensor | None
    restored: torch.Tensor | None


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

    def forward(self, images: torch.Tensor, restore: bool = True) -> Prediction:
        features = self.encoder(images)
        restored = None
        if restore and self.decoder is not None:
            # In float32 also under autocast: a sigmoid of 8 bits is too coarse an image.
            restored = torch.sigmoid(self.decoder(features).float())
        logits = None if self.head is None else self.head(features[-1]).float()
        return Prediction(pooled(features[-1]).float(), logits, restored)


class UNet(nn.Module):
    """Encoder and decoder for a segmentation target: [n, 1, z, y, x] → logits [n, num_out, z, y, x]."""

    def __init__(self, num_out: int, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.encoder = build_encoder(architecture or Architecture())
        self.decoder = build_decoder(architecture or Architecture(), num_out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images))


def build_encoder(architecture: Architecture) -> ImageEncoder:
    """The encoder of an architecture, for images of one channel."""
    if architecture.network == "unet":
        return Encoder(architecture.ndim, architecture.base_width, norm=architecture.norm)
    return _module_of(architecture.network).build_encoder(architecture)


def build_decoder(architecture: Architecture, num_out: int) -> nn.Module:
    """The decoder of an architecture: from its encoder's features to images of `num_out` channels."""
    if architecture.network == "unet":
        return Decoder(architecture.ndim, architecture.base_width, num_out, architecture.norm)
    return _module_of(architecture.network).build_decoder(architecture, num_out)


def save_memory(model: PretextNetwork) -> None:
    """Have the encoder and the decoder compute activations again instead of keeping them (gradient checkpointing)."""
    for part in (model.encoder, model.decoder):
        if part is not None:
            part.saves_memory = True  # type: ignore[assignment] # torch says that all attributes are tensors or modules


def _module_of(network: str) -> ModuleType:
    """Where a network other than the U-Net is built; MONAI takes seconds to import."""
    return import_module(f"raygenesis.networks.{'i3d' if network == 'i3d' else 'monai_networks'}")
