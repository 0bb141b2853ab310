"""The workers that share a training, and what they must agree on: sums, and the statistics of batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch._compile import _disable_dynamo
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among those that share the work."""

    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"


ALONE = Workers()


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of all workers' samples together, on a CPU: torch's own needs a GPU.

    In evaluation a worker counts its own samples, where it counts any. It stays outside of what `torch.compile`
    compiles, which has no graph for collectives in the midst of a backward pass.
    """

    # Where statistics are tracked; there is no layer without a momentum.
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def _check_input_dim(self, images: torch.Tensor) -> None:
        """Any number of axes."""

    @_disable_dynamo  # `torch.compiler.disable` would import the compiler with this file
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(images)
        axes = [0, *range(2, images.dim())]
        wide = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images  # under autocast
        total = wide.new_full((1,), images.numel() // images.shape[1])
        dist.all_reduce(total)
        # Two sums, one after the other: the mean square less the squared mean would cancel.
        mean = all_reduce(wide.sum(axes)) / total
        centred = wide - _along_channels(mean, images)
        variance = all_reduce(centred.square().sum(axes)) / total
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        normed = centred * _along_channels(scale, images)
        if self.bias is not None:
            normed = normed + _along_channels(self.bias, images)
        return normed.to(images.dtype)


class GpuSynchronisedBatchNorm(nn.SyncBatchNorm):
    """Torch's own, for GPUs, which stays outside of what `torch.compile` compiles as well."""

    @_disable_dynamo
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)


def synchronise(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Replace the model's batch norms by ones that count all workers' samples; parameters and names stay."""
    kind = GpuSynchronisedBatchNorm if torch.device(device).type == "cuda" else SynchronisedBatchNorm
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, _BatchNorm) and not isinstance(layer, kind):
                setattr(parent, name, _synchronised(layer, kind))
    return model


def _synchronised(layer: _BatchNorm, kind: type[_BatchNorm]) -> _BatchNorm:
    norm = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    norm.train(layer.training)
    for own in ("_parameters", "_buffers"):
        getattr(norm, own).update(getattr(layer, own))
    return norm


def _along_channels(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (images.dim() - 2))


def sum_over_workers(values: Mapping[str, torch.Tensor], world_size: int) -> dict[str, torch.Tensor]:
    """Sum tensors over all workers, which give the same names and shapes; float64, where the tensors are."""
    names = sorted(values)
    totals = torch.cat([values[name].detach().double().flatten() for name in names])
    if world_size > 1:
        dist.all_reduce(totals)
    parts = totals.split([values[name].numel() for name in names])
    return {name: part.view(values[name].shape) for name, part in zip(names, parts, strict=True)}


def gather_rows(rows: torch.Tensor, num_rows: int, filling: int) -> torch.Tensor:
    """Rows, [n, ...], of all workers that share the work, by rank, each worker's with `filling` below; no gradient.

    What is gathered has one shape, whose size is not asked of the others: that would wait for a GPU.
    num_rows: of all workers together at the most, of which each has its even share, or a pair more or less.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    world_size = dist.get_world_size()
    padded = rows.new_full((num_rows // world_size + 2, *rows.shape[1:]), filling)
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.cat(parts)
