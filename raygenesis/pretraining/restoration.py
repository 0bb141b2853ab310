"""Errors of restored cubes, [n, 1, z, y, x] (2D: [n, 1, y, x]), over the voxels that were to be restored."""

from __future__ import annotations

import torch


def restoration_error(
    restored: torch.Tensor, original: torch.Tensor, masked: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of each cube, float32 [n], over the voxels where `masked` (bool) is true; all when None."""
    return _mean((restored - original).square(), masked)


def blank_error(original: torch.Tensor, masked: torch.Tensor | None = None) -> torch.Tensor:
    """The error of always answering with the mean of what is to be restored of a cube, float32 [n]: its variance."""
    if masked is None:
        return original.flatten(1).var(1, correction=0)
    mean = _mean(original, masked).view(-1, *[1] * (original.dim() - 1))
    return restoration_error(mean, original, masked)


def _mean(values: torch.Tensor, masked: torch.Tensor | None) -> torch.Tensor:
    if masked is None:
        return values.flatten(1).mean(1)
    return (values * masked).flatten(1).sum(1) / masked.flatten(1).sum(1)
