"""The Models Genesis corruptions, batched: flips, local shuffling, non-linear, painting.

Written from METHOD.md, section "Corruptions" (Zhou et al., MICCAI 2019; the paper of Semantic
Genesis takes them over). Everything works on whole batches float32 [N, channels, *spatial] in
[0, 1] with two or three spatial axes, on CPU or GPU; a corruption is computed for those samples
only that drew it. Intensity curves differ between samples; shuffling and painting hit the same
voxels in all channels of a sample.

On a CPU core, batches of 4 to 8 cubes of 64x64x32 are about twice as fast as 64, whose temporaries
the allocator returns to the system each time: split at will, the result is the same bits.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from math import prod
from typing import NamedTuple

import torch

from raygenesis.errors import SettingsError
from raygenesis.pretraining.draws import Draws

MARGIN = 3  # voxels between a painted box and the edge of the cube
MOST_FLIPS = 3
_CODE_BITS = 12  # random bits that pick the source of a shuffled voxel along one axis
_KNOTS = 512  # cells of an intensity curve
_CURVE_SAMPLES = 1024  # points at which a Bezier is evaluated before it is inverted


class CubeTooSmallError(SettingsError):
    """The boxes of a painting do not fit inside the cube."""


@dataclass(frozen=True, kw_only=True)
class CorruptionSet:
    """Which corruptions a sample may draw and how strong they are; defaults: Models Genesis.

    exclusive: each sample gets exactly one of shuffling, non-linear, in- and out-painting, with
    probability 1/4 each; their own probabilities and inpaint_share are then without effect.
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

    def __post_init__(self) -> None:
        if max(*self.inpaint_blocks, *self.outpaint_windows) > 8:  # one bit of a byte each
            raise ValueError(f"'{self.name}' asks for more than 8 blocks or windows")


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
        _NOTHING,
    )
}


class Chosen(NamedTuple):
    """bool [N] each: the samples that get this corruption."""

    shuffle: torch.Tensor
    nonlinear: torch.Tensor
    inpaint: torch.Tensor
    outpaint: torch.Tensor


def corrupt(
    cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet
) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupted cubes and what a network should restore them to (the cubes as flipped).

    cubes: float32 [N, channels, *spatial] in [0, 1], not modified; draws: N streams on its device.
    Returns two new tensors of the same shape. Raises CubeTooSmallError, ValueError.
    """
    _check(cubes, draws, corruption)
    target = flip(cubes, draws, corruption)
    corrupted = target.clone()
    chosen = choose(draws, corruption)
    for selected, step in zip(chosen, (shuffle, nonlinear, inpaint, outpaint), strict=True):
        at = selected.nonzero().squeeze(1)
        if len(at):
            part = step(corrupted.index_select(0, at), draws.select(at), corruption)
            corrupted.index_copy_(0, at, part)
    return corrupted, target


def choose(draws: Draws, corruption: CorruptionSet) -> Chosen:
    """Which sample gets which corruption; in- and out-painting exclude each other."""
    first, second, third, fourth = draws.uniform("choice", (4,)).unbind(1)
    if corruption.exclusive:
        return Chosen(*((first * 4).long() == kind for kind in range(4)))
    painted = third < corruption.paint_probability
    inside = fourth < corruption.inpaint_share
    return Chosen(
        shuffle=first < corruption.shuffle_probability,
        nonlinear=second < corruption.nonlinear_probability,
        inpaint=painted & inside,
        outpaint=painted & ~inside,
    )


def flip(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> torch.Tensor:
    """Up to MOST_FLIPS mirrorings, each along a random spatial axis; a new tensor."""
    spatial_axes = cubes.dim() - 2
    go_on, which = draws.uniform("flip", (2, MOST_FLIPS)).unbind(1)
    happens = (go_on < corruption.flip_probability).cumprod(1).bool()
    which = (which * spatial_axes).long()
    flipped = cubes.clone()
    for axis in range(spatial_axes):
        odd = ((which == axis) & happens).sum(1) % 2 == 1
        at = odd.nonzero().squeeze(1)
        flipped.index_copy_(0, at, flipped.index_select(0, at).flip(axis + 2))
    return flipped


def shuffle(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> torch.Tensor:
    """Voxels moved within small blocks, drawn voxel by voxel from the law of the block process.

    In the published process thousands of blocks are laid over the cube one after another, each with
    its original voxels permuted. Where a voxel's value comes from then follows exactly the law of
    `shuffle_law`; here every voxel draws from it independently (METHOD.md: 36 ms a cube for the
    replay). What is lost is the joint law: neighbours need not share a block, and a source voxel
    may be shown twice.
    """
    n, channels, *spatial = cubes.shape
    law = shuffle_law(tuple(spatial), corruption, cubes.device)
    # Four 16-bit lanes out of one 64-bit hash per voxel: one for each axis, one for the coverage.
    voxels = law.threshold.numel()
    lanes = draws.bits("shuffle", (2, voxels)).view(torch.int16).view(n, 4, voxels)
    jump = torch.zeros(n, voxels, dtype=torch.int32, device=cubes.device)
    for axis, (rows, jumps) in enumerate(zip(law.rows, law.jumps, strict=True)):
        # Mixed-type arithmetic with a broadcast operand is many times slower than converting first.
        code = (lanes[:, axis] >> (16 - _CODE_BITS)).to(torch.int32).add_(rows)
        jump += jumps.index_select(0, code.flatten()).view(n, voxels)
    jump *= lanes[:, -1] < law.threshold
    source = torch.arange(cubes.numel(), dtype=torch.int32, device=cubes.device)
    source.view(n, channels, voxels).add_(jump.unsqueeze(1))
    return cubes.flatten().index_select(0, source).view_as(cubes)


class ShuffleLaw(NamedTuple):
    """Tables from which `shuffle` draws, for one cube shape of V voxels.

    threshold: int16 [V], a voxel is covered where a uniform int16 lies below.
    jumps: per axis int32 [dim * 2**_CODE_BITS], steps in the flattened cube, by position and code.
    rows: per axis int32 [V], where in jumps the code 0 of that voxel's position lies.
    """

    threshold: torch.Tensor
    jumps: tuple[torch.Tensor, ...]
    rows: tuple[torch.Tensor, ...]


@lru_cache(maxsize=8)
def shuffle_law(
    spatial: tuple[int, ...], corruption: CorruptionSet, device: torch.device
) -> ShuffleLaw:
    """The law of a voxel's source under the block process, as tables for inverse-CDF look-up.

    A voxel shows the last block laid over it, so only whether there was one (probability
    1 - (1 - p)**blocks, with p that of one block covering the voxel) and the law of one block given
    that it covers the voxel matter; both p and that law factorise over the axes.
    """
    codes = 2**_CODE_BITS
    middles = (torch.arange(codes, dtype=torch.float64) + 0.5) / codes
    covers = torch.ones((), dtype=torch.float64)
    jumps, rows = [], []
    for axis, dim in enumerate(spatial):
        joint = _block_law(dim, max(1, dim // corruption.shuffle_max_fraction))
        cover = joint.sum(1, keepdim=True)
        covers = covers.unsqueeze(-1) * cover.squeeze(1)
        sources = torch.searchsorted((joint / cover).cumsum(1), middles.repeat(dim, 1))
        position = torch.arange(dim).unsqueeze(1)
        later_axes = spatial[axis + 1 :]
        jumps.append(((sources - position) * prod(later_axes)).flatten())
        row = position * codes + codes // 2  # codes are signed: -codes/2..codes/2-1
        rows.append(row.view(dim, *(1,) * len(later_axes)).expand(spatial).flatten())
    covered = -torch.expm1(corruption.shuffle_blocks * torch.log1p(-covers)).flatten()
    threshold = (covered * 2**16 - 2**15).round().clamp(max=2**15 - 1)
    return ShuffleLaw(
        threshold.to(device, torch.int16),
        tuple(table.to(device, torch.int32) for table in jumps),
        tuple(table.to(device, torch.int32) for table in rows),
    )


def _block_law(dim: int, longest: int) -> torch.Tensor:
    """float64 [dim, dim]: probability that one block covers x and shows y there, along one axis.

    Side uniform in 1..longest, start uniform among those that fit, source uniform in the block.
    """
    joint = torch.zeros(dim, dim, dtype=torch.float64)
    for side in range(1, longest + 1):
        starts = dim - side + 1
        offset = torch.arange(dim) - torch.arange(starts)[:, None]
        member = ((offset >= 0) & (offset < side)).double()
        joint += member.T @ member / (longest * starts * side)
    return joint


def nonlinear(cubes: torch.Tensor, draws: Draws, _: CorruptionSet) -> torch.Tensor:
    """Intensities through a random monotone curve per sample, falling in half of them."""
    table = intensity_curves(draws)
    rise = table.diff(dim=1, append=table[:, -1:])
    position = cubes.flatten(1).clamp(0.0, 1.0).mul_(_KNOTS)
    cell = position.long()
    values = rise.gather(1, cell).mul_(position.frac_()).add_(table.gather(1, cell))
    return values.clamp_(0.0, 1.0).view_as(cubes)


def intensity_curves(draws: Draws) -> torch.Tensor:
    """float32 [N, _KNOTS + 1]: new intensities at evenly spaced old ones in 0..1.

    Cubic Bezier through (0, 0), (a, b), (c, d), (1, 1), with a..d uniform. x(t) and y(t) both rise
    for control values in [0, 1]. The inverted curve, one minus it, has the same law as exchanging
    b and d in y(1 - t), which is how the published code inverts.
    """
    a, b, c, d, inverts = draws.uniform("curve", (5, 1)).unbind(1)
    t = torch.linspace(0.0, 1.0, _CURVE_SAMPLES, device=a.device)
    early, late, end = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    x, y = a * early + c * late + end, b * early + d * late + end
    knots = torch.linspace(0.0, 1.0, _KNOTS + 1, device=a.device).repeat(len(a), 1)
    after = torch.searchsorted(x, knots).clamp_(1, _CURVE_SAMPLES - 1)
    x_before, y_before = x.gather(1, after - 1), y.gather(1, after - 1)
    x_step = (x.gather(1, after) - x_before).clamp_(min=1e-12)  # rounding may leave no step at all
    fraction = ((knots - x_before) / x_step).clamp_(0.0, 1.0)
    curve = y_before + (y.gather(1, after) - y_before) * fraction
    return torch.where(inverts < 0.5, 1.0 - curve, curve)


def inpaint(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> torch.Tensor:
    """Uniform noise inside a few blocks with sides of dim // 6..dim // 3."""
    sides = [_block_sides(dim) for dim in cubes.shape[2:]]
    boxes = _boxes(cubes, draws, sides, corruption.inpaint_blocks, corruption.paint_continue)
    return _noise_where(boxes, cubes, draws)


def outpaint(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> torch.Tensor:
    """Uniform noise outside a few windows with sides of dim - (3 dim // 7..4 dim // 7)."""
    sides = [_window_sides(dim) for dim in cubes.shape[2:]]
    boxes = _boxes(cubes, draws, sides, corruption.outpaint_windows, corruption.paint_continue)
    return _noise_where(~boxes, cubes, draws)


def _block_sides(dim: int) -> tuple[int, int]:
    return dim // 6, dim // 3


def _window_sides(dim: int) -> tuple[int, int]:
    return dim - 4 * dim // 7, dim - 3 * dim // 7


def _boxes(
    cubes: torch.Tensor,
    draws: Draws,
    sides: list[tuple[int, int]],
    number: tuple[int, int],
    go_on: float,
) -> torch.Tensor:
    """bool [N, *spatial]: inside one of the random boxes of its sample.

    sides: shortest and longest per axis; number: fewest and most boxes; go_on: probability of each
    box beyond the fewest.
    """
    spatial, device = cubes.shape[2:], cubes.device
    fewest, most = number
    happens = draws.uniform("box number", (most,)) < go_on
    happens[:, :fewest] = True
    # One bit a box: ANDing the bytes of the axes then intersects them for all boxes at once.
    bit = happens.cumprod(1) << torch.arange(most, device=device)
    shortest, longest = torch.tensor(sides, device=device).T.unsqueeze(1).expand(-1, most, -1)
    side = draws.integers("box sides", shortest.unsqueeze(0), longest.unsqueeze(0))
    last_start = torch.tensor(spatial, device=device) - side - MARGIN
    start = draws.integers("box starts", torch.full_like(last_start, MARGIN), last_start)
    member = torch.full((1,), 255, dtype=torch.uint8, device=device)
    for axis, dim in enumerate(spatial):
        offset = torch.arange(dim, device=device) - start[:, :, axis, None]
        inside = (offset >= 0) & (offset < side[:, :, axis, None])
        bits = (inside * bit[:, :, None]).sum(1).to(torch.uint8)
        member = member.unsqueeze(-1) & bits.view(-1, *(1,) * axis, dim)
    return member.bool()


def _noise_where(hidden: torch.Tensor, cubes: torch.Tensor, draws: Draws) -> torch.Tensor:
    noise = draws.uniform("noise", tuple(cubes.shape[1:]))
    return torch.where(hidden.unsqueeze(1), noise, cubes)


def _check(cubes: torch.Tensor, draws: Draws, corruption: CorruptionSet) -> None:
    if cubes.dim() not in (4, 5) or cubes.dtype != torch.float32:
        raise ValueError(
            f"cubes must be float32 [N, channels, 2 or 3 axes], not {cubes.dtype} "
            f"{tuple(cubes.shape)}"
        )
    if len(draws.keys) != len(cubes):
        raise ValueError(f"{len(cubes)} cubes, but the streams of {len(draws.keys)} samples")
    painted, share = corruption.paint_probability, corruption.inpaint_share
    for sides, used in (
        (_block_sides, corruption.exclusive or painted * share > 0),
        (_window_sides, corruption.exclusive or painted * (1 - share) > 0),
    ):
        smallest = next(dim for dim in count(6) if sides(dim)[1] + 2 * MARGIN <= dim)
        if used and min(cubes.shape[2:]) < smallest:
            raise CubeTooSmallError(
                f"cubes of {tuple(cubes.shape[2:])} are too small for the painting of "
                f"'{corruption.name}', which needs at least {smallest} voxels along every axis"
            )
