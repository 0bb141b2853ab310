"""What it takes to build a network again."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What it takes to build a network again; stored beside its weights.

    network: `unet`, `i3d`, or a name of `monai_networks`. head: what answers at the bottleneck, `classification` or
    `rubiks-cube`, with num_classes answers; none when None. restores: whether there is a decoder. skips: whether the
    decoder sees the encoder's finer levels, and not the bottleneck alone. projection_size: numbers of the projected
    embedding, by which pairs are compared; there is no projection when 0.
    """

    ndim: int = 3
    network: str = "unet"
    base_width: int = 32
    norm: str = "batch"
    head: str | None = None
    num_classes: int = 0
    restores: bool = True
    # Neither is in the representation, the fingerprint of random weights: those that are kept stay what they were.
    skips: bool = field(default=True, repr=False)
    projection_size: int = field(default=0, repr=False)
