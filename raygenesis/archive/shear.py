"""Axes that are not perpendicular, as a tilted gantry leaves them: made right-angled by linear resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.errors import ScanError

# Below this the affine carries the tilt exactly, and voxels are right-angled to within 0.004 %.
SMALLEST_TILT_DEGREES = 0.5
LARGEST_TILT_DEGREES = 45.0


@dataclass(frozen=True)
class Slide:
    """The planes at each index of one axis, moved within themselves.

    axis: the axis, 0 for x. along: the axes along which its planes move. moves: float64 [planes, axes of `along`],
    voxels from where the new grid begins. sides: of the new grid, along the axes of `along`.
    """

    axis: int
    along: tuple[int, ...]
    moves: NDArray[np.float64]
    sides: tuple[int, ...]


@dataclass(frozen=True)
class Straightening:
    """How a sheared grid becomes a right-angled one.

    slides: to be done in their order. shape: of the new grid, z y x (2D: y x). affine: from its index (x, y, z) to mm.
    degrees: the largest angle that is taken away.
    """

    slides: tuple[Slide, ...]
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    degrees: float

    def apply(self, voxels: NDArray[Any], background: float, nearest: bool = False) -> NDArray[Any]:
        """Voxels [..., z, y, x] (2D: [..., y, x]) on the new grid, of the same type; `background` where none was.

        nearest: take the nearest voxel instead of interpolating, as labels need it.
        """
        if len(self.slides) == 1 or nearest:
            return self._slid(voxels, background, nearest)
        # What the first slide leaves empty must not be mixed into what the second one interpolates.
        held = self._slid(voxels.astype(np.result_type(voxels, np.float32)), np.nan, nearest)
        return _as_type(np.where(np.isnan(held), background, held), voxels.dtype)

    def _slid(self, voxels: NDArray[Any], background: float, nearest: bool) -> NDArray[Any]:
        for slide in self.slides:
            axes = [-1 - axis for axis in (slide.axis, *slide.along)]
            first = list(range(len(axes)))
            planes = np.moveaxis(voxels, axes, first)
            moves = np.rint(slide.moves) if nearest else slide.moves
            new = [moved(plane, move, slide.sides, background) for plane, move in zip(planes, moves, strict=True)]
            voxels = np.moveaxis(np.stack(new), first, axes)
        return voxels


def straightening(shape: Sequence[int], affine: NDArray[np.float64]) -> Straightening | None:
    """What makes a grid right-angled, `shape` z y x (2D: y x); None where its axes are perpendicular already.

    Where one plane of the grid is right-angled, as the slices of a tilted gantry are, it stays as it is and its planes
    move. Raises ScanError for a shear that is too large.
    """
    columns = affine[:3, : len(shape)] / np.linalg.norm(affine[:3, : len(shape)], axis=0)
    if max(_tilts(columns).values()) <= SMALLEST_TILT_DEGREES:
        return None
    sides, affine = list(shape[::-1]), affine.copy()
    slides, largest = [], 0.0
    for axis, along in _order(affine[:3, : len(shape)]):
        others = affine[:3, along]
        shares = np.linalg.lstsq(others, affine[:3, axis])[0]
        aside = others @ shares
        angle = math.degrees(math.atan2(np.linalg.norm(aside), np.linalg.norm(affine[:3, axis] - aside)))
        if angle <= SMALLEST_TILT_DEGREES:
            continue
        if angle > LARGEST_TILT_DEGREES:
            raise ScanError(f"its axes are {angle:.0f}° from perpendicular, too far for a gantry tilt")
        moves = np.round(np.arange(sides[axis])[:, None] * shares, 6)
        begin, more = np.floor(moves.min(axis=0)), np.ceil(np.ptp(moves, axis=0)).astype(int).tolist()
        if any(extra > sides[other] for other, extra in zip(along, more, strict=True)):
            raise ScanError(f"the first and the last slice do not overlap: they are tilted by {angle:.1f}°")
        for other, extra in zip(along, more, strict=True):
            sides[other] += extra
        affine[:3, axis] -= aside
        affine[:3, 3] += others @ begin
        slides.append(Slide(axis, tuple(along), moves - begin, tuple(sides[other] for other in along)))
        largest = max(largest, angle)
    return Straightening(tuple(slides), tuple(sides[::-1]), affine, largest)


def _tilts(columns: NDArray[np.float64]) -> dict[tuple[int, int], float]:
    """How far each pair of unit columns is from perpendicular, in degrees."""
    pairs = combinations(range(columns.shape[1]), 2)
    return {(i, j): math.degrees(math.asin(min(1.0, abs(float(columns[:, i] @ columns[:, j]))))) for i, j in pairs}


def _order(steps: NDArray[np.float64]) -> list[tuple[int, list[int]]]:
    """Which axis' planes slide along which axes, first to last, for the steps [3, axes] of a grid."""
    if steps.shape[1] == 2:
        return [(1, [0])]
    lengths = np.linalg.norm(steps, axis=0)
    tilts = _tilts(steps / lengths)

    def rank(pair: tuple[int, int]) -> tuple[float, float, int]:
        across = 3 - sum(pair)
        # Slices are thicker than their pixels are wide; of isotropic scans tilted ones are mostly axial.
        tilt = tilts[pair] if tilts[pair] > SMALLEST_TILT_DEGREES else 0.0
        return tilt, -round(math.log(lengths[across]), 2), -across

    one, other = min(tilts, key=rank)
    return [(other, [one]), (3 - one - other, [one, other])]


def moved(pixels: NDArray[Any], move: NDArray[np.float64], sides: Sequence[int], background: float) -> NDArray[Any]:
    """An array moved along its first axes by fractions of pixels, linearly, into one of these sides there."""
    whole, dtype = np.floor(move).astype(int), pixels.dtype
    for axis, share in enumerate(move - whole):
        if share > 0:
            ahead = np.moveaxis(pixels, axis, 0)
            pixels = np.moveaxis(_mixed(ahead[1:], ahead[:-1], np.float32(share)), 0, axis)
            whole[axis] += 1
    there = np.full((*sides, *pixels.shape[len(sides) :]), background, dtype)
    place = tuple(slice(begin, begin + side) for begin, side in zip(whole.tolist(), pixels.shape, strict=False))
    there[place] = _as_type(pixels, dtype)
    return there


def blend(one: NDArray[Any], other: NDArray[Any], share: np.float32) -> NDArray[Any]:
    """`share` of the other and the rest of the one, in their own type."""
    return _as_type(_mixed(one, other, share), one.dtype)


def _mixed(one: NDArray[Any], other: NDArray[Any], share: np.float32) -> NDArray[Any]:
    return one * (1 - share) + other * share


def _as_type(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values in a type, whose integers are the nearest."""
    return (np.rint(values) if dtype.kind in "iu" and values.dtype.kind == "f" else values).astype(dtype, copy=False)
