"""Corruption sets, as a table: which corruptions a sample may get, and how strong they are (Zhou et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace

MOST_BOXES = 8  # blocks or windows of a painting: one bit each, of a row of 2**8 patterns


@dataclass(frozen=True, kw_only=True)
class CorruptionSet:
    """Which corruptions a sample may get and how strong they are; the defaults are those of Models Genesis.

    Attributes:
        exclusive: Each sample gets exactly one of shuffling, non-linear intensities, in- and out-painting, with
            probability 1/4 each; their own probabilities and `inpaint_share` then have no effect, and nothing is
            swapped. Masks are not among them.
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
    mask_ratio: float = 0.0  # share of each sample's units that are masked; only these voxels are then to be restored

    def __post_init__(self) -> None:
        if max(*self.inpaint_blocks, *self.outpaint_windows) > MOST_BOXES:
            raise ValueError(f"'{self.name}' asks for more than {MOST_BOXES} blocks or windows")
        if not 0 <= self.mask_ratio <= 1:
            raise ValueError(f"'{self.name}' has mask_ratio {self.mask_ratio}: a share, from 0 to 1, is right")
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

# `semantic-genesis-paper` does not flip: a flipped pattern has lost the side that its pseudo-label names, and the
# paper's text names four corruptions, no flip among them.
# `semantic-genesis-released` leaves out the elastic warp that the released code always applies: its
# target is the unwarped cube and nothing in the input tells the warp, so it cannot be learnt.
CORRUPTIONS: dict[str, CorruptionSet] = {
    preset.name: preset
    for preset in (
        _GENESIS,
        replace(_GENESIS, name="semantic-genesis-paper", flip_probability=0.0),
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
        replace(_NOTHING, name="mae", mask_ratio=0.7),
        _NOTHING,
    )
}
