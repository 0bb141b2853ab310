"""What each corruption draws for its samples, and how it changes their voxels in place.

What is costly to draw is looked up: shuffles in a bank of replays, noise in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch

from raygenesis.patterns.cells import STEPS
from raygenesis.pretraining.corruption_sets import CorruptionSet
from raygenesis.pretraining.draws import Draws
from raygenesis.settings.streams import SHUFFLE_BANK

MARGIN = 3  # voxels between a painted box and the edge of the cube
MOST_FLIPS = 3
_STEPS_PER_KNOT = 7  # of an intensity curve, which is straight in between; 4,095 is 585 times 7
_CURVE_SAMPLES = 1024  # points at which a Bezier is evaluated before it is inverted
_MOST_REPLAYS, _FEWEST_REPLAYS, _BANK_BYTES = 32, 4, 2**26
_BLOCK_VOXELS = 2**20  # voxels of blocks laid at once while a bank is built
_NOISE_NUMBERS = 2**20


def mirrored_axes(draws: Draws, num_axes: int, corruption: CorruptionSet) -> torch.Tensor:
    """bool [N, num_axes]: mirrored in the end by up to MOST_FLIPS flips, each along a random spatial axis."""
    go_on, which = draws.uniform("flip", (2, MOST_FLIPS)).unbind(1)
    happens = (go_on < corruption.flip_probability).cumprod(1).bool()
    along = (which * num_axes).long().unsqueeze(2) == torch.arange(num_axes, device=which.device)
    return (along & happens.unsqueeze(2)).sum(1) % 2 == 1


def mirror(cubes: torch.Tensor, axis: int) -> None:
    """Mirrored along an axis, in place."""
    cubes.copy_(cubes.flip(axis))


def shuffle(cubes: torch.Tensor, planes: torch.Tensor, bank: torch.Tensor) -> None:
    """Voxels moved within small blocks, in place; planes: int64 [N, depth], the replay of each plane.

    In the published process thousands of blocks are laid over the cube one after another, each with
    its original voxels permuted. Here every plane along the first spatial axis is that of a randomly
    drawn one of the M replays in the bank, so there are M**depth shuffles. Each plane is one of the
    process itself, so its sources have the exact law, each and together; but every epoch draws from the
    same M of it. What is lost is the joint law across planes: a block need not go on in the next.
    """
    n, channels, depth = cubes.shape[:3]
    rows = (planes * depth + torch.arange(depth, device=cubes.device)).flatten()
    source = bank.flatten(0, 1).index_select(0, rows).view(n, 1, -1).expand(-1, channels, -1).flatten(0, 1)
    cubes.copy_(cubes.flatten().index_select(0, _end_to_end(source, source.shape[1])).view_as(cubes))


def shuffle_planes(draws: Draws, bank: torch.Tensor) -> torch.Tensor:
    """int64 [N, depth]: the replay that each plane along the first spatial axis is taken from."""
    replays, depth = bank.shape[:2]
    return (draws.uniform("shuffle", (depth,)) * replays).long()


@lru_cache(maxsize=4)
def shuffle_bank(spatial: tuple[int, ...], blocks: int, max_fraction: int, device: torch.device) -> torch.Tensor:
    """int32 [M, depth, voxels of a plane]: the source of each voxel in M replays of the block process.

    Up to 32 replays in up to 64 MiB, but no fewer than 4; always the same ones.
    """
    replays = min(_MOST_REPLAYS, max(_FEWEST_REPLAYS, _BANK_BYTES // (4 * prod(spatial))))
    seeds = SHUFFLE_BANK.sequence(0).spawn(replays)
    bank = np.stack([_replay(spatial, blocks, max_fraction, np.random.default_rng(seed)) for seed in seeds])
    return torch.from_numpy(bank).view(replays, spatial[0], -1).to(device)


def _replay(spatial: tuple[int, ...], blocks: int, max_fraction: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [voxels]: the voxel number that each voxel shows after all blocks were laid."""
    shown = np.arange(prod(spatial), dtype=np.int32)
    longest = np.maximum(1, np.array(spatial) // max_fraction)
    at_once = max(1, _BLOCK_VOXELS // prod(longest.tolist()))
    for done in range(0, blocks, at_once):
        sides = rng.integers(1, longest + 1, (min(at_once, blocks - done), len(spatial)))
        starts = rng.integers(0, np.array(spatial) - sides + 1)
        volumes = sides.prod(1)
        block = np.repeat(np.arange(len(sides)), volumes)
        place = np.arange(len(block)) - (volumes.cumsum() - volumes)[block]
        voxels, stride = np.zeros_like(block), 1
        for axis in reversed(range(len(spatial))):
            place, offset = np.divmod(place, sides[block, axis])
            voxels += (starts[block, axis] + offset) * stride
            stride *= spatial[axis]
        # Sorting by block and then by chance permutes within each; the last of repeated voxels is what stays.
        shown[voxels] = voxels[np.argsort(block + rng.random(len(block)))]
    return shown


def swap(
    cubes: torch.Tensor, sides: torch.Tensor, first: torch.Tensor, second: torch.Tensor, longest: Sequence[int]
) -> None:
    """Pairs of equal blocks change places in place, one pair after the other.

    sides, first, second: int64 [N, pairs, axes], the sides of a pair's blocks and where each starts; longest: the most
    that sides may be.
    """
    n, channels, *spatial = cubes.shape
    device = cubes.device
    steps = torch.cartesian_prod(*(torch.arange(side, device=device) for side in longest))
    # Steps out of a smaller block are turned to its first voxel, which then is written twice with one value.
    inside = (steps.T[:, None, None] < sides.movedim(2, 0).unsqueeze(3)).all(0)
    starts = _voxel_numbers(torch.stack((first, second)), spatial)
    places = starts.unsqueeze(3) + inside * _voxel_numbers(steps, spatial)  # [2, N, pairs, voxels of a block]
    samples = torch.arange(n * channels, device=device).mul_(prod(spatial)).view(n, channels, 1)
    values = cubes.view(-1)
    for pair in places.unbind(2):
        here = pair.unsqueeze(2) + samples
        values[here] = values[here.flip(0)]


def _voxel_numbers(places: torch.Tensor, spatial: Sequence[int]) -> torch.Tensor:
    """Places int64 [..., axes] in an image of these sides → the numbers of their voxels, [...]."""
    numbers, *others = places.unbind(-1)
    for side, along in zip(spatial[1:], others, strict=True):
        numbers = numbers * side + along
    return numbers


def swap_sides(spatial: Sequence[int], corruption: CorruptionSet) -> tuple[list[int], list[int]]:
    """Shortest and longest sides of the blocks to swap, one an axis."""
    shortest, longest = ([max(1, dim // fraction) for dim in spatial] for fraction in corruption.swap_fractions)
    return shortest, longest


def swapped_blocks(
    draws: Draws, spatial: tuple[int, ...], corruption: CorruptionSet
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sides, first starts and second starts of the blocks to swap, int64 [N, swap_number, axes].

    Along one random axis two uniform starts in dim - 2 * side, put in order, and the later moved on by
    a side keep the blocks of a pair apart; along the others both starts are uniform.
    """
    device = draws.keys.device
    dims = torch.tensor(spatial, device=device).expand(1, corruption.swap_number, -1)
    shortest, longest = (
        torch.tensor(sides, device=device).expand_as(dims) for sides in swap_sides(spatial, corruption)
    )
    sides = draws.integers("swap sides", shortest, longest)
    axis = (draws.uniform("swap axis", (corruption.swap_number, 1)) * len(spatial)).long()
    apart = axis == torch.arange(len(spatial), device=device)
    room = (dims - sides - apart * sides).unsqueeze(1).expand(-1, 2, -1, -1)
    starts = draws.integers("swap starts", torch.zeros_like(room), room)
    low, high = starts.amin(1), starts.amax(1) + sides
    return sides, torch.where(apart, low, starts[:, 0]), torch.where(apart, high, starts[:, 1])


def nonlinear(cubes: torch.Tensor, tables: torch.Tensor) -> None:
    """Intensities through each sample's table (float32 [N, STEPS + 1]), in place.

    Stored cubes hold multiples of 1 / STEPS, others are taken to the nearest.
    """
    entry = cubes.flatten(1).mul(STEPS).round_().to(torch.int32).clamp_(0, STEPS)
    torch.index_select(tables.flatten(), 0, _end_to_end(entry, STEPS + 1), out=cubes.view(-1))


def intensity_tables(draws: Draws) -> torch.Tensor:
    """float32 [N, STEPS + 1]: the new intensity of each step, straight between the knots of a curve.

    Random monotone curves, falling in half of the samples.
    """
    curves = intensity_curves(draws)
    weights = torch.arange(_STEPS_PER_KNOT, device=curves.device) / _STEPS_PER_KNOT
    between = torch.lerp(curves[:, :-1, None], curves[:, 1:, None], weights)
    return torch.cat((between.flatten(1), curves[:, -1:]), 1).clamp_(0.0, 1.0)


def intensity_curves(draws: Draws) -> torch.Tensor:
    """float32 [N, STEPS // _STEPS_PER_KNOT + 1]: new intensities at evenly spaced old ones in 0..1.

    Cubic Bezier through (0, 0), (a, b), (c, d), (1, 1), with a..d uniform. x(t) and y(t) both rise
    for control values in [0, 1]. The inverted curve, one minus it, has the same law as exchanging
    b and d in y(1 - t), which is how the published code inverts.
    """
    a, b, c, d, inverts = draws.uniform("curve", (5, 1)).unbind(1)
    t = torch.linspace(0.0, 1.0, _CURVE_SAMPLES, device=a.device)
    early, late, end = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    x, y = a * early + c * late + end, b * early + d * late + end
    cells = STEPS // _STEPS_PER_KNOT
    knots = torch.linspace(0.0, 1.0, cells + 1, device=a.device)
    # Counting the samples up to each knot finds the one after it, four times faster than searching.
    next_knot = (x * cells).ceil_().clamp_(0, cells).long()
    up_to = torch.zeros(len(a), cells + 1, dtype=torch.int64, device=a.device)
    after = up_to.scatter_add_(1, next_knot, torch.ones_like(next_knot)).cumsum(1).clamp_(1, _CURVE_SAMPLES - 1)
    x_before, y_before = x.gather(1, after - 1), y.gather(1, after - 1)
    x_step = (x.gather(1, after) - x_before).clamp_(min=1e-12)  # rounding may leave no step at all
    fraction = ((knots - x_before) / x_step).clamp_(0.0, 1.0)
    curve = y_before + (y.gather(1, after) - y_before) * fraction
    return torch.where(inverts < 0.5, 1.0 - curve, curve)


def paint(cubes: torch.Tensor, codes: torch.Tensor, patterns: torch.Tensor, windows: torch.Tensor) -> None:
    """Uniform noise in the hidden voxels, in place.

    codes: int32 [N, rows along the last axis], the row's place in patterns; patterns: float32
    [N, 2**boxes, voxels of a row], 1 where hidden and 0 elsewhere; windows: int64 [N, channels, depth],
    where in the noise table each plane's begins.
    """
    rows = _end_to_end(codes, patterns.shape[1])
    hidden = patterns.flatten(0, 1).index_select(0, rows).view(len(cubes), 1, *cubes.shape[2:])
    plane = prod(cubes.shape[3:])
    table = noise_table(_noise_length(plane), cubes.device)
    noise = table.as_strided((len(table) - plane + 1, plane), (1, 1)).index_select(0, windows.flatten())
    cubes.lerp_(noise.view_as(cubes), hidden)  # exact for weights 0 and 1, and four times faster than torch.where


def painting(
    draws: Draws, shape: tuple[int, ...], outside: torch.Tensor, corruption: CorruptionSet
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, patterns and windows for `paint` on samples of `shape` (channels, *spatial).

    A sample hides what is in a few blocks with sides of dim // 6..dim // 3 or, where `outside` (bool
    [N]), what is in none of a few windows with sides of dim - (3 dim // 7..4 dim // 7).
    """
    channels, depth, *others = shape
    *leading, last = _box_bits(draws, shape[1:], outside, corruption)
    codes = leading[0]
    for bits in leading[1:]:
        codes = (codes.unsqueeze(2) & bits.unsqueeze(1)).flatten(1)
    most = _most_boxes(corruption)
    every_code = torch.arange(2**most, dtype=torch.int32, device=codes.device)
    covered = (every_code.unsqueeze(1) & last.unsqueeze(1)) != 0
    # Planes may share part of the table's numbers, each at other voxels.
    latest = _noise_length(prod(others)) - prod(others)
    windows = (draws.uniform("noise", (channels, depth)) * (latest + 1)).long().clamp_(max=latest)
    return codes, (covered != outside.view(-1, 1, 1)).float(), windows


def _noise_length(plane: int) -> int:
    return max(_NOISE_NUMBERS, 4 * plane)


@lru_cache(maxsize=4)
def noise_table(length: int, device: torch.device) -> torch.Tensor:
    """float32 [length], uniform in [0, 1); always the same."""
    return Draws.of(0, torch.zeros(1, dtype=torch.int64, device=device), 0).uniform("noise table", (length,))[0]


def _most_boxes(corruption: CorruptionSet) -> int:
    return max(corruption.inpaint_blocks[1], corruption.outpaint_windows[1])


def block_sides(dim: int) -> tuple[int, int]:
    """Shortest and longest side of an in-painted block."""
    return dim // 6, dim // 3


def window_sides(dim: int) -> tuple[int, int]:
    """Shortest and longest side of a window that out-painting leaves."""
    return dim - 4 * dim // 7, dim - 3 * dim // 7


def _box_bits(
    draws: Draws, spatial: tuple[int, ...], outside: torch.Tensor, corruption: CorruptionSet
) -> list[torch.Tensor]:
    """Per axis int32 [N, dim]: bit k is set where the sample's box k covers that position of the axis.

    A voxel is in a box where the bits of its positions, ANDed over the axes, are not all nought.
    """
    device, most = draws.keys.device, _most_boxes(corruption)
    kind = outside.long()
    fewest, allowed = torch.tensor((corruption.inpaint_blocks, corruption.outpaint_windows), device=device)[kind].T
    number = torch.arange(most, device=device)
    happens = draws.uniform("box number", (most,)) < corruption.paint_continue
    happens = (happens | (number < fewest.unsqueeze(1))) & (number < allowed.unsqueeze(1))
    bit = (happens.cumprod(1) << number).to(torch.int32)
    sides = [[block_sides(dim) for dim in spatial], [window_sides(dim) for dim in spatial]]
    shortest, longest = torch.tensor(sides, device=device)[kind].unsqueeze(1).expand(-1, most, -1, -1).unbind(3)
    side = draws.integers("box sides", shortest, longest)
    last_start = torch.tensor(spatial, device=device) - side - MARGIN
    start = draws.integers("box starts", torch.full_like(last_start, MARGIN), last_start)
    bits = []
    for axis, dim in enumerate(spatial):
        offset = torch.arange(dim, device=device) - start[:, :, axis, None]
        inside = (offset >= 0) & (offset < side[:, :, axis, None])
        bits.append((inside * bit.unsqueeze(2)).sum(1, dtype=torch.int32))
    return bits


def _end_to_end(rows: torch.Tensor, length: int) -> torch.Tensor:
    """int32 [N, M] places in N rows of `length` values, as places in those rows laid end to end: [N * M]."""
    if len(rows) > 1:
        rows = rows + torch.arange(len(rows), dtype=torch.int32, device=rows.device).mul_(length).unsqueeze(1)
    return rows.flatten()
