"""Corrupting a batch: which samples get which corruption, in what order (Models Genesis, block swapping, masks).

The corruptions are those of Zhou et al., MICCAI 2019, which the paper of Semantic Genesis takes over; block swapping is
that of Chen et al., Medical Image Analysis 2019; masks are those of `masks`. Everything works on whole batches float32
[N, channels, *spatial] in [0, 1] with two or three spatial axes, on CPU or GPU. Intensity curves differ between
samples; shuffling, swapping, painting and masks hit the same voxels in all channels of a sample.

What a sample draws is small (axes, boxes, curves, numbers of replays) and drawn for the whole batch
at once, on the CPU, so that nobody waits for a GPU to know which samples get what. The voxels are then
changed sample by sample on a CPU, in its cache, and all at once on a GPU, by the operations of
`corruption_steps`.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from raygenesis.errors import SettingsError
from raygenesis.pretraining.corruption_sets import CorruptionSet
from raygenesis.pretraining.corruption_steps import (
    MARGIN,
    block_sides,
    intensity_tables,
    mirror,
    mirrored_axes,
    nonlinear,
    paint,
    painting,
    shuffle,
    shuffle_bank,
    shuffle_planes,
    swap,
    swap_sides,
    swapped_blocks,
    window_sides,
)
from raygenesis.pretraining.draws import Draws
from raygenesis.pretraining.masks import mask, masked_units, masked_voxels
from raygenesis.training.devices import send

_CPU_PART, _GPU_PART = 2**17, 2**30  # values changed at once; voxels are numbered by int32


class CubeTooSmallError(SettingsError):
    """The boxes of a painting or the blocks of a swap do not fit inside the cube."""


class Choice(NamedTuple):
    """bool [N] each: the samples that get this corruption."""

    shuffle: torch.Tensor
    nonlinear: torch.Tensor
    inpaint: torch.Tensor
    outpaint: torch.Tensor
    swap: torch.Tensor


class CorruptionStep(NamedTuple):
    """One operation on some samples of a batch.

    Attributes:
        change: Changes cubes in place; takes them and a row of `parameters` for each.
        samples: Numbers of the samples in the batch, rising.
        parameters: What was drawn for the operation, on the CPU: tensors with a row a sample.
    """

    change: Callable[..., None]
    samples: list[int]
    parameters: tuple[torch.Tensor, ...] = ()

    def apply(self, cubes: torch.Tensor, first: int) -> None:
        """Change `cubes`, which are the samples of the batch from number `first` on, in place."""
        begin, end = (bisect_left(self.samples, sample) for sample in (first, first + len(cubes)))
        parameters = (send(rows[begin:end], cubes.device) for rows in self.parameters)
        if end - begin == len(cubes):
            self.change(cubes, *parameters)
        elif end > begin:
            at = send(torch.tensor(self.samples[begin:end]) - first, cubes.device)
            few = cubes.index_select(0, at)
            self.change(few, *parameters)
            cubes.index_copy_(0, at, few)


def corrupt(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupt cubes.

    Args:
        cubes: float32 [N, channels, *spatial] in [0, 1], not modified.
        draws: Random streams of the N samples, on the CPU.
        corruption: Which corruptions the samples may get.

    Returns:
        The corrupted cubes, and the cubes that a network should restore from them: the originals, flipped alike. Both
        are new tensors of the shape of `cubes`.

    Raises:
        CubeTooSmallError: The cubes are too small for the set.
        ValueError: The cubes have another dtype or number of axes, or there are not N streams on the CPU.
    """
    _check(cubes, draws, corruption)
    flips, changes = _flips(cubes, draws, corruption), _changes(cubes, draws, corruption)
    corrupted, target = _empty_like(cubes), _empty_like(cubes)
    values = _CPU_PART if cubes.device.type == "cpu" else _GPU_PART
    size = max(1, values // max(1, prod(cubes.shape[1:])))
    for first in range(0, len(cubes), size):
        original, flipped, changed = (batch[first : first + size] for batch in (cubes, target, corrupted))
        flipped.copy_(original)
        for step in flips:
            step.apply(flipped, first)
        changed.copy_(flipped)
        for step in changes:
            step.apply(changed, first)
    return corrupted, target


def masked_places(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> torch.Tensor | None:
    """The voxels of corrupted cubes that `corrupt` masks, bool [N, 1, *spatial]; None where a set masks nothing.

    draws: as for `corrupt`; what is returned is on the device of the cubes.
    """
    if not corruption.mask_ratio:
        return None
    spatial = cubes.shape[2:]
    return masked_voxels(send(masked_units(draws, spatial, corruption.mask_ratio), cubes.device), spatial)


def check_fits(spatial: Sequence[int], corruption: CorruptionSet) -> None:
    """Raise CubeTooSmallError if cubes of this shape cannot be painted or have blocks swapped as the set asks."""
    inpainted = corruption.paint_probability * corruption.inpaint_share
    outpainted = corruption.paint_probability - inpainted
    for needed, used, what in (
        (_fitting(block_sides), corruption.exclusive or inpainted > 0, "painting"),
        (_fitting(window_sides), corruption.exclusive or outpainted > 0, "painting"),
        (2, not corruption.exclusive and corruption.swap_probability > 0, "swapping"),
    ):
        if used and min(spatial) < needed:
            raise CubeTooSmallError(
                f"cubes of {tuple(spatial)} are too small for the {what} of '{corruption.name}', which needs at least "
                f"{needed} voxels along every axis: choose larger cubes (discovery.cube_shape) or another "
                "pretraining.corruption"
            )


def choose(draws: Draws, corruption: CorruptionSet) -> Choice:
    """Which sample gets which corruption; in- and out-painting exclude each other."""
    first, second, third, fourth, fifth = draws.uniform("choice", (5,)).unbind(1)
    if corruption.exclusive:
        shuffle, nonlinear, inpaint, outpaint = ((first * 4).long() == kind for kind in range(4))
        return Choice(shuffle, nonlinear, inpaint, outpaint, swap=first < 0)
    painted = third < corruption.paint_probability
    inside = fourth < corruption.inpaint_share
    return Choice(
        shuffle=first < corruption.shuffle_probability,
        nonlinear=second < corruption.nonlinear_probability,
        inpaint=painted & inside,
        outpaint=painted & ~inside,
        swap=fifth < corruption.swap_probability,
    )


def _flips(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> list[CorruptionStep]:
    mirrored = mirrored_axes(draws, cubes.dim() - 2, corruption)
    return [
        CorruptionStep(partial(mirror, axis=axis + 2), at.nonzero().flatten().tolist())
        for axis, at in enumerate(mirrored.unbind(1))
    ]


def _changes(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> list[CorruptionStep]:
    """What follows the flips, in order, without what happens to no sample."""
    chosen, shape = choose(draws, corruption), cubes.shape[1:]
    painted = chosen.inpaint | chosen.outpaint

    steps = []
    at, own = _members(chosen.shuffle, draws)
    if at:
        bank = shuffle_bank(tuple(shape[1:]), corruption.shuffle_blocks, corruption.shuffle_max_fraction, cubes.device)
        steps.append(CorruptionStep(partial(shuffle, bank=bank), at, (shuffle_planes(own, bank),)))
    at, own = _members(chosen.swap, draws)
    if at:
        _, longest = swap_sides(shape[1:], corruption)
        steps.append(CorruptionStep(partial(swap, longest=longest), at, swapped_blocks(own, shape[1:], corruption)))
    at, own = _members(chosen.nonlinear, draws)
    if at:
        steps.append(CorruptionStep(nonlinear, at, (intensity_tables(own),)))
    at, own = _members(painted, draws)
    if at:
        steps.append(CorruptionStep(paint, at, painting(own, shape, chosen.outpaint[painted], corruption)))
    if corruption.mask_ratio:
        units = masked_units(draws, shape[1:], corruption.mask_ratio)
        steps.append(CorruptionStep(mask, list(range(len(units))), (units,)))
    return steps


def _members(selected: torch.Tensor, draws: Draws) -> tuple[list[int], Draws]:
    """The numbers and the streams of the selected samples."""
    at = selected.nonzero().squeeze(1)
    return at.tolist(), draws.select(at)


def _empty_like(cubes: torch.Tensor) -> torch.Tensor:
    # NumPy asks the system for huge pages, torch does not: in large batches page faults would cost the most.
    if cubes.device.type == "cpu":
        return torch.from_numpy(np.empty(cubes.shape, np.float32))
    return torch.empty_like(cubes, memory_format=torch.contiguous_format)


def _check(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> None:
    if cubes.dim() not in (4, 5) or cubes.dtype != torch.float32:
        raise ValueError(f"cubes must be float32 [N, channels, 2 or 3 axes], not {cubes.dtype} {tuple(cubes.shape)}")
    if len(draws.keys) != len(cubes):
        raise ValueError(f"{len(cubes)} cubes, but the streams of {len(draws.keys)} samples")
    if draws.keys.device.type != "cpu":
        raise ValueError(f"the samples' streams must be on the CPU, not on {draws.keys.device}")
    check_fits(cubes.shape[2:], corruption)


def _fitting(sides: Callable[[int], tuple[int, int]]) -> int:
    """The fewest voxels of an axis in which the longest box fits between the margins."""
    return next(dim for dim in count(6) if sides(dim)[1] + 2 * MARGIN <= dim)
