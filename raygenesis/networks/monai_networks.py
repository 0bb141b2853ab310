"""Ready networks of MONAI, taken apart into an encoder and a decoder; their parts keep MONAI's names.

`segresnet` is SegResNet; `resnet18` and its like are FlexibleUNet: the decoder of segmentation_models over a ResNet.
`resnet18-b` and `resnet34-b` have torchvision's shortcuts (1×1 convolutions, option B of the ResNet paper) where
MONAI's of that depth have none with weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.nets import FLEXUNET_BACKBONE, FlexibleUNet, SegResNet
from torch import nn

from raygenesis.networks.architecture import Architecture
from raygenesis.networks.decoder import ImageDecoder
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.layers import BATCH_NORM, CONV, run_layer

WITH_WEIGHTS = "-b"  # ends the name of a ResNet whose shortcuts have weights, where MONAI's have none


class SegResNetEncoder(ImageEncoder):
    """The encoder of MONAI's SegResNet: the bottleneck has 1/8 of each side and 8 × base_width channels."""

    def __init__(self, whole: SegResNet) -> None:
        super().__init__()
        self.convInit, self.down_layers = whole.convInit, whole.down_layers
        self.num_features = whole.init_filters * 2 ** (len(whole.down_layers) - 1)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = []
        images = self.convInit(images)
        for layer in self.down_layers:
            images = run_layer(layer, images, recompute=self.gradient_checkpointing)
            features.append(images)
        return features


class SegResNetDecoder(ImageDecoder):
    """The decoder of MONAI's SegResNet: skips are added."""

    output_layer = "conv_final.2"

    def __init__(self, whole: SegResNet) -> None:
        super().__init__()
        self.up_samples, self.up_layers, self.conv_final = whole.up_samples, whole.up_layers, whole.conv_final

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        below = features[-1]
        for up, layer, skip in zip(self.up_samples, self.up_layers, reversed(features[:-1]), strict=True):
            below = run_layer(layer, up(below) + skip, recompute=self.gradient_checkpointing)
        return self.conv_final(below)


class ResNetEncoder(ImageEncoder):
    """A ResNet: five levels, the finest of half the sides; the bottleneck has 1/32 of each side."""

    def __init__(self, whole: FlexibleUNet) -> None:
        super().__init__()
        self.encoder = whole.encoder
        self.num_features = FLEXUNET_BACKBONE.register_dict[whole.backbone]["feature_channel"][-1]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return list(run_layer(self.encoder, images, recompute=self.gradient_checkpointing))


class ResNetDecoder(ImageDecoder):
    """The decoder of MONAI's FlexibleUNet."""

    output_layer = "segmentation_head.0"

    def __init__(self, whole: FlexibleUNet) -> None:
        super().__init__()
        self.decoder, self.segmentation_head = whole.decoder, whole.segmentation_head
        self._num_skips = whole.skip_connect

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.segmentation_head(
            run_layer(self.decoder, features, self._num_skips, recompute=self.gradient_checkpointing)
        )


def build_encoder(architecture: Architecture) -> ImageEncoder:
    """The encoder of an architecture of MONAI's, for images of one channel."""
    whole = _build(architecture, 1)
    return SegResNetEncoder(whole) if isinstance(whole, SegResNet) else ResNetEncoder(whole)


def build_decoder(architecture: Architecture, num_out: int) -> ImageDecoder:
    """The decoder of an architecture of MONAI's, to images of `num_out` channels."""
    whole = _build(architecture, num_out)
    return SegResNetDecoder(whole) if isinstance(whole, SegResNet) else ResNetDecoder(whole)


def monai_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's and decoder's part of a PretextNetwork's or UNet's state under MONAI's own names."""
    parts = ("encoder.", "decoder.")
    return {name.partition(".")[2]: value for name, value in state.items() if name.startswith(parts)}


def monai_class(network: str) -> str | None:
    """The name of MONAI's class of a network; None where MONAI has none with these weights."""
    if network == "segresnet":
        return "SegResNet"
    return "FlexibleUNet" if network in FLEXUNET_BACKBONE.register_dict else None


def _build(architecture: Architecture, num_out: int) -> SegResNet | FlexibleUNet:
    if architecture.network == "segresnet":
        return SegResNet(architecture.ndim, architecture.base_width, in_channels=1, out_channels=num_out)
    depth = architecture.network.removesuffix(WITH_WEIGHTS)
    whole = FlexibleUNet(1, num_out, depth, spatial_dims=architecture.ndim)
    if architecture.network.endswith(WITH_WEIGHTS):
        _add_shortcut_weights(whole.encoder, architecture.ndim)
    return whole


def _add_shortcut_weights(encoder: Any, ndim: int) -> None:
    """Where a layer of basic blocks narrows the image: a 1×1 convolution and batch norm, named as torchvision's."""
    for layer in (encoder.layer2, encoder.layer3, encoder.layer4):
        conv = layer[0].conv1
        shortcut = CONV[ndim](conv.in_channels, conv.out_channels, 1, stride=conv.stride, bias=False)
        nn.init.kaiming_normal_(shortcut.weight, mode="fan_out", nonlinearity="relu")  # as MONAI begins the others
        layer[0].downsample = nn.Sequential(shortcut, BATCH_NORM[ndim](conv.out_channels))
