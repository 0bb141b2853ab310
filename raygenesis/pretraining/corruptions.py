"""The corruptions of a batch: which samples get which, in what order (Models Genesis, and block swapping).

Written from METHOD.md, section "Corruptions" (Zhou et al., MICCAI 2019; the paper of Semantic
Genesis takes them over; block swapping is Chen et al., Medical Image Analysis 2019). Everything works
on whole batches float32 [N, channels, *spatial] in [0, 1] with two or three spatial axes, on CPU or
GPU. Intensity curves differ between samples; shuffling, swapping and painting hit the same voxels in
all channels of a sample.

What a sample draws is small (axes, boxes, curves, numbers of replays) and drawn for the whole batch
at once. The voxels are then changed sample by sample on a CPU, in its cache, and all at once on a
GPU, by the steps of `corruption_steps`.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from raygenesis.errors import SettingsError
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
    swapped_blocks,
    window_sides,
)
from raygenesis.pretraining.draws import Draws

_CPU_PART, _GPU_PART = 2**17, 2**30  # values changed at once; voxels are numbered by int32


class CubeTooSmallError(SettingsError):
    """The boxes of a painting or the blocks of a swap do not fit inside the cube."""


@dataclass(frozen=True, kw_only=True)
class CorruptionSet:
    """Which corruptions a sample may draw and how strong they are; defaults: Models Genesis.

    exclusive: each sample gets exactly one of shuffling, non-linear, in- and out-painting, with
    probability 1/4 each; their own probabilities and inpaint_share are then without effect, and
    nothing is swapped.
    """

    name: str
    exclusive: bool = False
    flip_probability: float = 0.4  # of the first flip, then of one more, up to MOST_FLIPS
    shuffle_probability: float = 0.5
    shuffle_blocks: int = 10_000
    shuffle_max_fraction: int = 10  # block sides are 1..max(1, dim // this)
    nonlinear_probability: float = 0.9
    paint_probability: float = 0.9
    inpaint_share: float = 0.2  # of the painted; the others are out-painted
    inpaint_blocks: tuple[int, int] = (0, 5)  # fewest, most
    outpaint_windows: tuple[int, int] = (1, 5)  # fewest, most
    paint_continue: float = 0.95  # probability of each block or window beyond the fewest
    swap_probability: float = 0.0
    swap_number: int = 10  # pairs of blocks that change places, one pair after the other
    swap_fractions: tuple[int, int] = (8, 4)  # block sides are dim // first..dim // second, at least 1

    def __post_init__(self) -> None:
        if max(*self.inpaint_blocks, *self.outpaint_windows) > 8:  # one bit each, of a row of 2**8 patterns
            raise ValueError(f"'{self.name}' asks for more than 8 blocks or windows")
        if not 2 <= self.swap_fractions[1] <= self.swap_fractions[0]:
            raise ValueError(f"'{self.name}' has swap_fractions {self.swap_fractions}: falling, 2 or more, are right")


_GENESIS = CorruptionSet(name="models-genesis")
_NOTHING = replace(
    _GENESIS,
    name="none",
    flip_probability=0.0,
    shuffle_probability=0.0,
    nonlinear_probability=0.0,
    paint_probability=0.0,
)

# `semantic-genesis-released` leaves out the elastic warp that the released code always applies: its
# target is the unwarped cube and nothing in the input tells the warp, so it cannot be learnt.
CORRUPTIONS: dict[str, CorruptionSet] = {
    preset.name: preset
    for preset in (
        _GENESIS,
        replace(_GENESIS, name="semantic-genesis-paper"),
        CorruptionSet(
            name="semantic-genesis-released",
            exclusive=True,
            flip_probability=0.0,
            shuffle_blocks=5,
            inpaint_blocks=(1, 1),
            outpaint_windows=(1, 1),
        ),
        replace(
            _NOTHING,
            name="in-painting",
            paint_probability=1.0,
            inpaint_share=1.0,
            inpaint_blocks=(1, 5),  # always a hole: a cube without one teaches nothing
        ),
        replace(_NOTHING, name="patch-shuffling", swap_probability=1.0),
        _NOTHING,
    )
}


class Chosen(NamedTuple):
    """bool [N] each: the samples that get this corruption."""

    shuffle: torch.Tensor
    nonlinear: torch.Tensor
    inpaint: torch.Tensor
    outpaint: torch.Tensor
    swap: torch.Tensor


class Step(NamedTuple):
    """A change of cubes in place, the samples that get it, rising, and what it takes: a row for each."""

    change: Callable[..., None]
    at: list[int]
    drawn: tuple[torch.Tensor, ...] = ()

    def apply(self, cubes: torch.Tensor, first: int) -> None:
        """Change `cubes`, the batch's samples from `first` on."""
        begin, end = (bisect_left(self.at, sample) for sample in (first, first + len(cubes)))
        drawn = (numbers[begin:end] for numbers in self.drawn)
        if end - begin == len(cubes):
            self.change(cubes, *drawn)
        elif end > begin:
            at = torch.tensor(self.at[begin:end], device=cubes.device) - first
            few = cubes.index_select(0, at)
            self.change(few, *drawn)
            cubes.index_copy_(0, at, few)


def corrupt(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupted cubes and what a network should restore them to (the cubes as flipped).

    cubes: float32 [N, channels, *spatial] in [0, 1], not modified; draws: N streams on its device.
    Returns two new tensors of the same shape. Raises CubeTooSmallError, ValueError.
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


def choose(draws: Draws, corruption: CorruptionSet) -> Chosen:
    """Which sample gets which corruption; in- and out-painting exclude each other."""
    first, second, third, fourth, fifth = draws.uniform("choice", (5,)).unbind(1)
    if corruption.exclusive:
        shuffle, nonlinear, inpaint, outpaint = ((first * 4).long() == kind for kind in range(4))
        return Chosen(shuffle, nonlinear, inpaint, outpaint, swap=first < 0)
    painted = third < corruption.paint_probability
    inside = fourth < corruption.inpaint_share
    return Chosen(
        shuffle=first < corruption.shuffle_probability,
        nonlinear=second < corruption.nonlinear_probability,
        inpaint=painted & inside,
        outpaint=painted & ~inside,
        swap=fifth < corruption.swap_probability,
    )


def _flips(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> list[Step]:
    mirrored = mirrored_axes(draws, cubes.dim() - 2, corruption)
    return [
        Step(partial(mirror, axis=axis + 2), at.nonzero().flatten().tolist())
        for axis, at in enumerate(mirrored.unbind(1))
    ]


def _changes(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> list[Step]:
    """What follows the flips, in order, without what happens to no sample."""
    chosen, shape = choose(draws, corruption), cubes.shape[1:]
    painted = chosen.inpaint | chosen.outpaint

    steps = []
    at, own = _members(chosen.shuffle, draws)
    if at:
        bank = shuffle_bank(tuple(shape[1:]), corruption.shuffle_blocks, corruption.shuffle_max_fraction, cubes.device)
        steps.append(Step(partial(shuffle, bank=bank), at, (shuffle_planes(own, bank),)))
    at, own = _members(chosen.swap, draws)
    if at:
        steps.append(Step(swap, at, swapped_blocks(own, shape[1:], corruption)))
    at, own = _members(chosen.nonlinear, draws)
    if at:
        steps.append(Step(nonlinear, at, (intensity_tables(own),)))
    at, own = _members(painted, draws)
    if at:
        steps.append(Step(paint, at, painting(own, shape, chosen.outpaint[painted], corruption)))
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
    check_fits(cubes.shape[2:], corruption)


def _fitting(sides: Callable[[int], tuple[int, int]]) -> int:
    """The fewest voxels of an axis in which the longest box fits between the margins."""
    return next(dim for dim in count(6) if sides(dim)[1] + 2 * MARGIN <= dim)
