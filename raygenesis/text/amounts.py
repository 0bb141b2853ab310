"""Amounts as people read them, in logs and on pages."""

from __future__ import annotations

from collections.abc import Iterable

MIB, GIB = 2**20, 2**30


def duration(seconds: float) -> str:
    """A duration in seconds, minutes, hours or days, whichever reads best: `2.5 min`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def size(num_bytes: float) -> str:
    """A number of bytes in KiB, MiB, GiB or TiB, whichever reads best: `1.5 GiB`."""
    for unit in ("KiB", "MiB", "GiB"):
        num_bytes /= 2**10
        if num_bytes < 2**10:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 2**10:,.1f} TiB"


def several(number: float, units: str) -> str:
    """A number with its unit: `1 core`, `2 cores`; units: the plural, with an s."""
    text = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{text} {units.removesuffix('s') if number == 1 else units}"


def sides(lengths: Iterable[float]) -> str:
    """The sides of a box, in the order given: `40×45×45`."""
    return "×".join(f"{length:.0f}" for length in lengths)
