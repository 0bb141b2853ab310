"""Layers in 2D and 3D that the networks are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import gcd
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# By the number of spatial dimensions.
CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}

MOST_GROUPS = 8  # of group norm


def norm_layer(kind: str, ndim: int, num_channels: int) -> nn.Module:
    """Build a normalisation layer.

    Args:
        kind: `batch`; `batch-statistics`, which uses the batch's own statistics in evaluation too, as the published
            code of Models Genesis does; `instance`; `group`, of at most 8 groups.
        ndim: Number of spatial dimensions, 2 or 3.
        num_channels: Channels of the layer's input.
    """
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


def global_average_pool(features: torch.Tensor) -> torch.Tensor:
    """[n, channels, ...] → [n, channels]: the mean over space."""
    return features.flatten(2).mean(2)


def swap_pairs(rows: torch.Tensor) -> torch.Tensor:
    """[n, ...] → [n, ...] with rows 0 and 1 exchanged, 2 and 3, and so on: what belongs to each row's partner."""
    return rows[torch.arange(len(rows), device=rows.device) ^ 1]


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations of a network, in the order of its modules."""
    return [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def has_batch_statistics(network: nn.Module) -> bool:
    """Whether a network normalises by a batch's own statistics in evaluation too (`norm_layer`, `batch-statistics`)."""
    return any(not norm.track_running_stats for norm in batch_norms(network))


def run_layer(layer: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Call a layer; with `recompute` its activations are not kept but computed again in the backward pass."""
    if not (recompute and torch.is_grad_enabled()):
        return layer(*inputs)
    contexts = lambda: (nullcontext(), frozen_statistics(layer))  # noqa: E731
    return checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms in training, each of which sees one batch that it must not count."""
    tracking = [norm for norm in batch_norms(layer) if norm.track_running_stats and norm.training]
    momenta = [norm.momentum for norm in tracking]
    for norm in tracking:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(tracking, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1
