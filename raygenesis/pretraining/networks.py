"""The networks of pretraining, in 2D and 3D: an encoder, a decoder that restores, and a head that answers (METHOD)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from math import gcd
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NUM_LEVELS = 4
MOST_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What it takes to build a network again; kept beside its weights.

    network: `unet`, `i3d`, or a name of `monai_networks`. head: what answers at the bottleneck, `classification` or
    `rubiks-cube`, with num_classes answers; none when None. restores: whether there is a decoder.
    """

    ndim: int = 3
    network: str = "unet"
    base_width: int = 32
    norm: str = "batch"
    head: str | None = None
    num_classes: int = 0
    restores: bool = True


def widths_of(base_width: int) -> list[int]:
    """Channels that leave each encoder level: 64, 128, 256, 512 for the paper's base width of 32."""
    return [base_width * 2 ** (level + 1) for level in range(NUM_LEVELS)]


def norm_layer(kind: str, ndim: int, num_channels: int) -> nn.Module:
    """`batch`; `batch-statistics`: the batch's own in evaluation too, as in the published code; `instance`; `group`."""
    if kind == "instance":
        return INSTANCE_NORM[ndim](num_channels, affine=True)
    if kind == "group":
        return nn.GroupNorm(gcd(MOST_GROUPS, num_channels), num_channels)
    return BATCH_NORM[ndim](num_channels, track_running_stats=kind != "batch-statistics")


class DoubleConv(nn.Sequential):
    """Twice: 3×3(×3) convolution, norm, ReLU."""

    def __init__(self, ndim: int, num_in: int, num_middle: int, num_out: int, norm: str = "batch") -> None:
        super().__init__(
            CONV[ndim](num_in, num_middle, 3, padding=1), norm_layer(norm, ndim, num_middle), nn.ReLU(inplace=True),
            CONV[ndim](num_middle, num_out, 3, padding=1), norm_layer(norm, ndim, num_out), nn.ReLU(inplace=True),
        )  # fmt: skip


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


class Encoder(ImageEncoder):
    """The U-Net's encoder: its bottleneck has 1/8 of each side."""

    def __init__(self, ndim: int = 3, base_width: int = 32, norm: str = "batch") -> None:
        super().__init__()
        widths = widths_of(base_width)
        num_in = [1, *widths[:-1]]
        # The second convolution of a level doubles the channels of its first.
        self.levels = nn.ModuleList(
            DoubleConv(ndim, before, max(before, base_width) if level else base_width, after, norm)
            for level, (before, after) in enumerate(zip(num_in, widths, strict=True))
        )
        self.pool = POOL[ndim](2)
        self.num_features = widths[-1]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for number, level in enumerate(self.levels):
            images = run(level, self.pool(images) if number else images, again=self.saves_memory)
            features.append(images)
        return features


class Decoder(nn.Module):
    """Features of all levels → [n, num_out, z, y, x], without an activation. last: the name of its output layer."""

    last = "output"
    saves_memory = False

    def __init__(self, ndim: int = 3, base_width: int = 32, num_out: int = 1, norm: str = "batch") -> None:
        super().__init__()
        widths = widths_of(base_width)
        pairs = list(zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True))
        self.ups = nn.ModuleList(TRANSPOSED[ndim](below, below, 2, stride=2) for _, below in pairs)
        self.levels = nn.ModuleList(DoubleConv(ndim, skip + below, skip, skip, norm) for skip, below in pairs)
        self.output = CONV[ndim](widths[0], num_out, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        now = features[-1]
        for up, level, skip in zip(self.ups, self.levels, reversed(features[:-1]), strict=True):
            # What comes from below first: published weights expect it.
            now = run(level, torch.cat([up(now), skip], 1), again=self.saves_memory)
        return self.output(now)


class ClassificationHead(nn.Module):
    """Bottleneck → convolution to twice the channels, global average, linear: logits [n, num_classes]."""

    def __init__(self, ndim: int, num_features: int, num_classes: int, norm: str = "batch") -> None:
        super().__init__()
        self.conv = nn.Sequential(
            CONV[ndim](num_features, 2 * num_features, 3, padding=1),
            norm_layer(norm, ndim, 2 * num_features),
            nn.ReLU(inplace=True),
        )
        self.linear = nn.Linear(2 * num_features, num_classes)

    def forward(self, bottleneck: torch.Tensor) -> torch.Tensor:
        return self.linear(pooled(self.conv(bottleneck)))


class RubiksCubeHead(nn.Module):
    """The pieces of a cube, one after another → logits [n, num_classes + 2 × pieces]: their order, and who was turned.

    Takes the bottlenecks of all 2**ndim pieces of each of n cubes, [n × pieces, num_features, ...].
    """

    def __init__(self, ndim: int, num_features: int, num_classes: int, norm: str = "batch") -> None:
        super().__init__()
        self.num_pieces = 2**ndim
        self.layers = nn.Sequential(
            nn.Linear(self.num_pieces * num_features, 2 * num_features),
            nn.ReLU(inplace=True),
            nn.Linear(2 * num_features, num_classes + 2 * self.num_pieces),
        )

    def forward(self, bottleneck: torch.Tensor) -> torch.Tensor:
        return self.layers(pooled(bottleneck).view(len(bottleneck) // self.num_pieces, -1))


HEADS = {"classification": ClassificationHead, "rubiks-cube": RubiksCubeHead}


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


def pooled(features: torch.Tensor) -> torch.Tensor:
    """[n, channels, ...] → [n, channels]: the mean over space."""
    return features.flatten(2).mean(2)


def has_batch_statistics(network: nn.Module) -> bool:
    """Whether it normalises by a batch's own statistics in evaluation too (`norm_layer`, `batch-statistics`)."""
    norms = (layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    return any(not layer.track_running_stats for layer in norms)


def run(part: nn.Module, *inputs: Any, again: bool) -> Any:
    """A part of a network on its inputs; with `again` its activations are not kept but computed again for gradients."""
    if not (again and torch.is_grad_enabled()):
        return part(*inputs)
    contexts = lambda: (nullcontext(), _statistics_kept(part))  # noqa: E731
    return checkpoint(part, *inputs, use_reentrant=False, context_fn=contexts)


def save_memory(model: PretextNetwork) -> None:
    """Have the encoder and the decoder compute activations again instead of keeping them (gradient checkpointing)."""
    for part in (model.encoder, model.decoder):
        if part is not None:
            part.saves_memory = True  # type: ignore[assignment] # torch says that all attributes are tensors or modules


def _module_of(network: str) -> ModuleType:
    """Where a network other than the U-Net is built; MONAI takes seconds to import."""
    return import_module(f"raygenesis.pretraining.{'i3d' if network == 'i3d' else 'monai_networks'}")


@contextmanager
def _statistics_kept(part: nn.Module) -> Iterator[None]:
    """Batch norms do not count a batch while they see it for the second time."""
    norms = [layer for layer in part.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    counting = [layer for layer in norms if layer.track_running_stats and layer.training]
    momenta = [layer.momentum for layer in counting]
    for layer in counting:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(counting, momenta, strict=True):
            layer.momentum = momentum
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked -= 1
