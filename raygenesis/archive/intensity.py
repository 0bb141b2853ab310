"""From stored values to [0, 1], when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.config import IntensitySettings

# Percentiles recorded for every volume at ingest.
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5


def percentiles(voxels: NDArray[np.generic]) -> tuple[float, float]:
    """The recorded percentiles of stored values; the extremes where most voxels are equal."""
    low, high = np.percentile(voxels, (LOW_PERCENTILE, HIGH_PERCENTILE))
    if low == high:
        low, high = voxels.min(), voxels.max()
    return float(low), float(high)


def limits(row: Mapping[str, Any], settings: IntensitySettings) -> tuple[float, float]:
    """The stored values of one catalogue row that become 0 and 1; exchanged where the rescale slope is negative."""
    if settings.window is None:
        low, high = row["low"], row["high"]
        return (low, high) if row["slope"] > 0 else (high, low)
    low, high = ((value - row["intercept"]) / row["slope"] for value in settings.window)
    return low, high


def normalise(voxels: NDArray[np.generic], low: float, high: float) -> NDArray[np.float32]:
    """Stored values to float32 in [0, 1]: `low` becomes 0, `high` becomes 1, the rest is clipped."""
    values = voxels.astype(np.float32)
    values -= np.float32(low)
    values *= np.float32(1.0 / (high - low))
    return np.clip(values, 0.0, 1.0, out=values)
