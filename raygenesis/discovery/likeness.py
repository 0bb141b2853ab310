"""How alike two scans are, by the details of their coarse voxels: copies, two visits, two people, or nothing alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

# Samples: widths of what is smoothed away as noise, and of what is taken away as broad.
FINE, BROAD = 0.8, 2.5
LEAST_OVERLAP = 0.6  # of the larger of two scans
Voxels = NDArray[np.float32]


@dataclass(frozen=True)
class CoarseScan:
    """A scan's coarse voxels, [z, y, x] (2D: [y, x]), and its size in mm. Its details are kept once computed."""

    voxels: Voxels
    size_mm: NDArray[np.float64]
    _kept: dict[tuple[float, ...], Voxels] = field(default_factory=dict, repr=False, compare=False)

    def details(self, step_mm: float, size_mm: NDArray[np.float64] | None = None) -> Voxels:
        """The details of the scan sampled every `step_mm`, as if it spanned `size_mm`, or what it does span."""
        size_mm = self.size_mm if size_mm is None else size_mm
        key = (step_mm, *size_mm.tolist())
        if key not in self._kept:
            self._kept[key] = details(self.voxels, size_mm, step_mm)
        return self._kept[key]


def likeness(one: CoarseScan, other: CoarseScan, grid: int) -> float:
    """How alike the details of two scans are, at most 1: of copies nearly that, of two visits of one person less.

    grid: samples along the longest side of the larger one. Their details, without noise and without what is broad, are
    correlated where the scans overlap, at the shift that fits best: once at their sizes in mm, of which one may show
    less than the other, and once stretched to one shape, as a copy may have lost its voxel size.
    """
    step = max(one.size_mm.max(), other.size_mm.max()) / grid
    in_mm = best_correlation(one.details(step), other.details(step))
    if np.allclose(one.size_mm, other.size_mm, rtol=0.5 / grid):
        return in_mm
    step = one.size_mm.max() / grid
    return max(in_mm, best_correlation(one.details(step), other.details(step, one.size_mm)))


def details(voxels: Voxels, size_mm: NDArray[np.float64], step_mm: float) -> Voxels:
    """The details of a scan, sampled every `step_mm`."""
    shape = np.maximum(np.rint(size_mm / step_mm), 1).astype(int)
    voxel_mm = size_mm / voxels.shape
    smooth = ndimage.gaussian_filter(voxels.astype(np.float32), np.maximum(FINE * step_mm / voxel_mm, 0.3))
    # About the middle of the scan, whose sides are no whole numbers of steps.
    sides = [(np.arange(n) - (n - 1) / 2) * step_mm / voxel + (side - 1) / 2
             for n, voxel, side in zip(shape, voxel_mm, voxels.shape, strict=True)]  # fmt: skip
    places = np.meshgrid(*sides, indexing="ij")
    sampled = ndimage.map_coordinates(smooth, places, order=1, mode="nearest", output=np.float32)
    fine: Voxels = sampled - ndimage.gaussian_filter(sampled, BROAD)
    return fine


def best_correlation(one: Voxels, other: Voxels) -> float:
    """The correlation of two images where they overlap, at the best of all shifts, refined below a sample."""
    shape = [fft.next_fast_len(a + b - 1, real=True) for a, b in zip(one.shape, other.shape, strict=True)]
    pair = fft.rfftn(one - one.mean(), shape) * np.conj(fft.rfftn(other - other.mean(), shape))
    peaks = fft.irfftn(pair, shape)
    peak = np.unravel_index(peaks.argmax(), shape)
    shift = [at - whole if at >= side else at for at, whole, side in zip(map(int, peak), shape, one.shape, strict=True)]
    offset = []
    for axis, at in enumerate(peak):
        rest = (*peak[:axis], *peak[axis + 1 :])
        before, here, after = (float(peaks.take(at + step, axis, mode="wrap")[rest]) for step in (-1, 0, 1))
        curve = before - 2 * here + after  # of the parabola through them
        offset.append(min(max(0.5 * (before - after) / curve, -0.5), 0.5) if curve < 0 else 0.0)
    return _correlation(one, other, shift, offset)


def _correlation(one: Voxels, other: Voxels, shift: list[int], offset: list[float]) -> float:
    """The correlation of `one` with `other` moved by shift and offset, where they overlap; 0 where they hardly do."""
    spans = [(max(step, 0), min(a, b + step)) for a, b, step in zip(one.shape, other.shape, shift, strict=True)]
    if np.prod([last - first for first, last in spans]) < LEAST_OVERLAP * max(one.size, other.size):
        return 0.0
    # What is broad near an end of a scan depends on where the scan ends.
    margins = [min(max(one.shape) // 16, (last - first - 1) // 4) for first, last in spans]
    inner = [(first + margin, last - margin) for (first, last), margin in zip(spans, margins, strict=True)]
    part = one[tuple(slice(*span) for span in inner)]
    moved = ndimage.shift(other, offset, order=3, mode="nearest")
    moved = moved[tuple(slice(first - step, last - step) for (first, last), step in zip(inner, shift, strict=True))]
    part, moved = part - part.mean(), moved - moved.mean()
    norm = float(np.sqrt((part**2).sum() * (moved**2).sum()))
    return float((part * moved).sum()) / norm if norm > 0 else 0.0
