"""Layers in 2D and 3D that the networks are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import gcd
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CONV = {2: nn.Conv2d, 3: nn.Conv3d}


TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


MOST_GROUPS = 8


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
