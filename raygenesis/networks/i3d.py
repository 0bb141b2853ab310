"""I3D (Carreira and Zisserman 2017): Inception-v1 inflated to 3D, under the names of its torch port, and a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from raygenesis.errors import RaygenesisError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.decoder import ImageDecoder
from raygenesis.networks.encoder import ImageEncoder
from raygenesis.networks.layers import CONV, DoubleConv, run_layer

LEVEL_ENDS = {"Conv3d_1a_7x7": 64, "Conv3d_2c_3x3": 192, "Mixed_3c": 480, "Mixed_4f": 832, "Mixed_5c": 1024}
DECODER_WIDTHS = (256, 128, 64, 32, 16)


class ConvUnit(nn.Module):
    """Convolution with TensorFlow's `SAME` padding, batch norm, ReLU."""

    def __init__(self, num_in: int, num_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.pad = nn.ConstantPad3d(same_padding([kernel] * 3, [stride] * 3), 0)
        self.conv3d = nn.Conv3d(num_in, num_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(num_out, eps=1e-3, momentum=0.01)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv3d(self.pad(images))))


class SamePool(nn.Sequential):
    """Max pooling with TensorFlow's `SAME` padding, by zeros: what is pooled follows a ReLU."""

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__(nn.ConstantPad3d(same_padding(kernel, stride), 0), nn.MaxPool3d(kernel, stride))


class InceptionBlock(nn.Module):
    """An Inception block: four branches side by side, of widths[0], [2], [4] and [5] channels."""

    def __init__(self, num_in: int, *widths: int) -> None:
        super().__init__()
        self.b0 = ConvUnit(num_in, widths[0])
        self.b1a, self.b1b = ConvUnit(num_in, widths[1]), ConvUnit(widths[1], widths[2], 3)
        self.b2a, self.b2b = ConvUnit(num_in, widths[3]), ConvUnit(widths[3], widths[4], 3)
        self.b3a, self.b3b = SamePool((3, 3, 3), (1, 1, 1)), ConvUnit(num_in, widths[5])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        branches = self.b0(images), self.b1b(self.b1a(images)), self.b2b(self.b2a(images)), self.b3b(self.b3a(images))
        return torch.cat(branches, 1)


class I3DEncoder(ImageEncoder):
    """Five levels of 1/2, 1/4, 1/8, 1/16 and 1/32 of the sides y and x, and 1/2, 1/2, 1/2, 1/4 and 1/8 of z (its time).

    The strides are the published ones, with which the weights were learnt; y and x are multiples of 32, z of 8.
    """

    num_features = LEVEL_ENDS["Mixed_5c"]

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({
            "Conv3d_1a_7x7": ConvUnit(1, 64, 7, 2),
            "MaxPool3d_2a_3x3": SamePool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": ConvUnit(64, 64),
            "Conv3d_2c_3x3": ConvUnit(64, 192, 3),
            "MaxPool3d_3a_3x3": SamePool((1, 3, 3), (1, 2, 2)),
            "Mixed_3b": InceptionBlock(192, 64, 96, 128, 16, 32, 32),
            "Mixed_3c": InceptionBlock(256, 128, 128, 192, 32, 96, 64),
            "MaxPool3d_4a_3x3": SamePool((3, 3, 3), (2, 2, 2)),
            "Mixed_4b": InceptionBlock(480, 192, 96, 208, 16, 48, 64),
            "Mixed_4c": InceptionBlock(512, 160, 112, 224, 24, 64, 64),
            "Mixed_4d": InceptionBlock(512, 128, 128, 256, 24, 64, 64),
            "Mixed_4e": InceptionBlock(512, 112, 144, 288, 32, 64, 64),
            "Mixed_4f": InceptionBlock(528, 256, 160, 320, 32, 128, 128),
            "MaxPool3d_5a_2x2": SamePool((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": InceptionBlock(832, 256, 160, 320, 32, 128, 128),
            "Mixed_5c": InceptionBlock(832, 384, 192, 384, 48, 128, 128),
        })  # fmt: skip

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for name, layer in self.layers.items():
            images = run_layer(layer, images, recompute=self.gradient_checkpointing)
            if name in LEVEL_ENDS:
                features.append(images)
        return features


class PyramidDecoder(ImageDecoder):
    """A decoder for levels with any strides, the finest of half the sides.

    Features from the level below are enlarged to the skip's sides by nearest neighbours.
    """

    output_layer = "output"

    def __init__(self, ndim: int, level_widths: Sequence[int], num_out: int) -> None:
        super().__init__()
        skips = [*reversed(level_widths[:-1]), 0]
        below = [level_widths[-1], *DECODER_WIDTHS]
        self.levels = nn.ModuleList(
            DoubleConv(ndim, deep + skip, width, width)
            for deep, skip, width in zip(below, skips, DECODER_WIDTHS, strict=False)
        )
        self.output = CONV[ndim](DECODER_WIDTHS[len(skips) - 1], num_out, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        below = features[-1]
        for level, skip in zip(self.levels, reversed(features[:-1]), strict=False):
            below = torch.cat([functional.interpolate(below, skip.shape[2:]), skip], 1)
            below = run_layer(level, below, recompute=self.gradient_checkpointing)
        below = run_layer(
            self.levels[-1], functional.interpolate(below, scale_factor=2), recompute=self.gradient_checkpointing
        )
        return self.output(below)


def build_encoder(architecture: Architecture) -> I3DEncoder:
    """Raises RaygenesisError for 2D images."""
    if architecture.ndim != 3:
        raise RaygenesisError("network i3d takes 3D images: choose a ResNet or unet for 2D ones")
    return I3DEncoder()


def build_decoder(architecture: Architecture, num_out: int) -> PyramidDecoder:
    return PyramidDecoder(architecture.ndim, list(LEVEL_ENDS.values()), num_out)


def same_padding(kernel: Sequence[int], stride: Sequence[int]) -> tuple[int, int, int, int, int, int]:
    """TensorFlow's `SAME` for sides that the stride divides, last axis first: of an odd number, one more behind."""
    totals = [max(side - step, 0) for side, step in zip(kernel, stride, strict=True)]
    z, y, x = ((total // 2, total - total // 2) for total in totals)
    return (*x, *y, *z)
