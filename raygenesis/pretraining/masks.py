"""Masks of units, as masked auto-encoders hide them (He et al., CVPR 2022).

A cube is divided into units, blocks that do not overlap, a share of which is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from raygenesis.pretraining.draws import Draws

SHORTEST_SIDE, LONGEST_SIDE = 4, 16  # of a unit, in voxels
SIDES_OF_CUBE = 4  # times the unit's side, between these
MASKED_VALUE = 0.0  # what air and the padding of a convolution show


def unit_sides(spatial: Sequence[int]) -> tuple[int, ...]:
    """Sides of a unit in voxels: a quarter of the cube's, but at least SHORTEST_SIDE and at most LONGEST_SIDE.

    Where a unit's side does not divide the cube's, the last unit along it is shorter.
    """
    return tuple(min(LONGEST_SIDE, max(SHORTEST_SIDE, side // SIDES_OF_CUBE)) for side in spatial)


def masked_units(draws: Draws, spatial: Sequence[int], ratio: float) -> torch.Tensor:
    """Which units of each sample are masked, bool [N, units along each axis]: in each the same share, rounded."""
    grid = [-(-side // unit) for side, unit in zip(spatial, unit_sides(spatial), strict=True)]
    drawn = draws.uniform("mask", (prod(grid),))
    chosen = drawn.argsort(dim=1, stable=True)[:, : round(ratio * prod(grid))]
    return torch.zeros_like(drawn, dtype=torch.bool).scatter_(1, chosen, True).unflatten(1, grid)


def masked_voxels(units: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
    """Which voxels lie in masked units, bool [N, 1, *spatial]; units: bool [N, units along each axis]."""
    voxels = units.unsqueeze(1)
    for axis, (side, unit) in enumerate(zip(spatial, unit_sides(spatial), strict=True), 2):
        voxels = voxels.repeat_interleave(unit, axis).narrow(axis, 0, side)
    return voxels


def mask(cubes: torch.Tensor, units: torch.Tensor) -> None:
    """MASKED_VALUE in the voxels of masked units, in place; units: bool [N, units along each axis]."""
    cubes.masked_fill_(masked_voxels(units, cubes.shape[2:]), MASKED_VALUE)
