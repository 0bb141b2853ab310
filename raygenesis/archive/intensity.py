"""From stored values to [0, 1], when they are read."""

from __future__ import annotations

import functools
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from raygenesis.errors import ScanError
from raygenesis.settings import IntensitySettings

# Percentiles recorded for every volume at ingest.
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
MOST_VOXELS = 2**21


def percentiles(voxels: NDArray[Any]) -> tuple[float, float]:
    """The recorded percentiles of one channel's stored values; the extremes where most voxels are equal.

    Linear between order statistics; of more than MOST_VOXELS an even sample of a quarter as many.
    """
    sample = voxels.reshape(-1)
    if sample.size > MOST_VOXELS:
        sample = sample[(_even_fractions(MOST_VOXELS // 4) * sample.size).astype(np.int64)]
    ranks = np.array([LOW_PERCENTILE, HIGH_PERCENTILE]) / 100 * (sample.size - 1)
    below, above = _order_statistics(sample, np.array([np.floor(ranks), np.ceil(ranks)]).astype(int))
    low, high = below + (above - below) * (ranks - np.floor(ranks))
    if low == high:
        low, high = voxels.min(), voxels.max()
    return float(low), float(high)


class ValueRange(TypedDict):
    """What a catalogue row says of a volume's values: the recorded percentiles of each channel, slope and intercept."""

    low: list[float]
    high: list[float]
    slope: float
    intercept: float


@functools.cache
def _even_fractions(count: int) -> NDArray[np.float64]:
    """Multiples of the golden section, modulo one: they fill any scan evenly, where strides miss the body."""
    return np.arange(count, dtype=np.float64) * ((5**0.5 - 1) / 2) % 1.0


def _order_statistics(values: NDArray[Any], ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        least = int(values.min())
        counts = np.bincount(values.astype(np.intp) - least)  # a fifth of the time of sorting
        return (np.searchsorted(np.cumsum(counts), ranks, side="right") + least).astype(np.float64)
    return np.partition(values, ranks.ravel())[ranks].astype(np.float64)


def limits(row: ValueRange, settings: IntensitySettings) -> tuple[float, float]:
    """The stored values of one catalogue row that become 0 and 1; exchanged where the rescale slope is negative.

    Raises ScanError if the scan has no such channel, or the channel is of a single value.
    """
    if settings.window is None:
        channel = settings.channel if len(row["low"]) > 1 else 0
        if channel >= len(row["low"]):
            raise ScanError(f"it has {len(row['low'])} channels, and intensity.channel={channel} asks for another")
        low, high = row["low"][channel], row["high"][channel]
        if low == high:
            raise ScanError(f"every voxel of its channel {channel} is the same: there is no image")
        return (low, high) if row["slope"] > 0 else (high, low)
    low, high = ((value - row["intercept"]) / row["slope"] for value in settings.window)
    return low, high


def normalise(voxels: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Stored values to float32 in [0, 1]: `low` becomes 0, `high` becomes 1, the rest is clipped."""
    values = voxels.astype(np.float32)
    values -= np.float32(low)
    values *= np.float32(1.0 / (high - low))
    return np.clip(values, 0.0, 1.0, out=values)
