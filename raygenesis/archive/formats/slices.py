"""Parallel slices: which can lie in one stack, in what order, and which regular grid of one type they fill.

Positions and directions come as DICOM has them (LPS: they rise towards left, posterior, superior), in mm. Affines are
RAS+, as NIfTI has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.grid import LPS_TO_RAS
from raygenesis.archive.shear import LARGEST_TILT_DEGREES, SMALLEST_TILT_DEGREES, blend, moved
from raygenesis.errors import ScanError

# Fewer slices are not a volume.
MIN_SLICES = 4

# Headers round: slices whose direction cosines and relative pixel spacings differ by less are alike.
SAME_DIRECTION = 1e-3
SAME_SPACING = 1e-3

# Share of a pixel within which two slices lie at the same position.
SAME_POSITION = 0.01

# Steps between slices may differ from their mean by this factor and still be interpolated, and their largest from their
# smallest by the other one where uneven slices are to be.
LARGEST_UNEVENNESS = 1.5
LARGEST_STEP_RATIO = 10

# What becomes of slices that are too far from even (`archive.uneven`): a ScanError where it is None.
Uneven = Literal["resample"] | None


@dataclass(frozen=True)
class Plane:
    """Where one slice lies. Raises ScanError where the numbers give no place.

    position: centre of the first pixel, mm.
    orientation: direction cosines of rising columns (three), then of rising rows (three).
    spacing: distance between rows, then between columns, mm.
    shape: rows, columns.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.position)):
            raise ScanError("the slice position is not finite")
        if not all(math.isfinite(step) and step > 0 for step in self.spacing):
            raise ScanError("the pixel spacing is not a positive number of mm")
        across, down = self.orientation[:3], self.orientation[3:]
        lengths = math.hypot(*across), math.hypot(*down)
        if not all(abs(length - 1) < 0.02 for length in lengths) or abs(float(np.dot(across, down))) > 0.02:
            raise ScanError("the slice orientation is not two perpendicular directions")

    @property
    def axes(self) -> NDArray[np.float64]:
        """Unit vectors [3, 3]: along columns, along rows, along the normal."""
        across, down = np.array(self.orientation, np.float64).reshape(2, 3)
        across, normal = across / np.linalg.norm(across), np.cross(across, down)
        normal /= np.linalg.norm(normal)
        return np.array([across, np.cross(normal, across), normal])


@dataclass(frozen=True)
class SliceGrid:
    """The regular grid that a stack of slices fills.

    shape: slices, rows, columns.
    affine: float64 [4, 4], from (column, row, slice) to RAS+ mm.
    moves: rows and columns [n, 2] by which each slice is moved on the grid, in pixels; None without gantry tilt.
    sources: where along the n slices, as a fraction of an index, each slice of the grid is taken; None if even.
    corrections: what that changes, in words.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    moves: NDArray[np.float64] | None
    sources: NDArray[np.float64] | None
    corrections: tuple[str, ...]


def difference(one: Plane, other: Plane) -> str:
    """What keeps two slices from being in one stack; empty if nothing does."""
    if one.shape != other.shape:
        return "matrix size"
    if any(abs(a - b) > SAME_DIRECTION for a, b in zip(one.orientation, other.orientation, strict=True)):
        return "orientation"
    if any(abs(a - b) > SAME_SPACING * a for a, b in zip(one.spacing, other.spacing, strict=True)):
        return "pixel spacing"
    return ""


def positions(planes: Sequence[Plane]) -> list[list[int]]:
    """Indices of one stack's slices, those at the same position together, in order along the normal."""
    depths = _depths(planes)
    tolerance = SAME_POSITION * min(planes[0].spacing)
    found: list[list[int]] = []
    for index in np.argsort(depths, kind="stable").tolist():
        if found and depths[index] - depths[found[-1][0]] <= tolerance:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _depths(planes: Sequence[Plane]) -> NDArray[np.float64]:
    return np.array([plane.position for plane in planes]) @ planes[0].axes[2]


def image_affine(plane: Plane) -> NDArray[np.float64]:
    """Affine of a slice alone, as if 1 mm thick."""
    across, down, normal = plane.axes
    return _affine(across * plane.spacing[1], down * plane.spacing[0], normal, np.array(plane.position))


def _affine(*columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steps along column, row and slice, then the origin, all LPS mm, as an affine to RAS+."""
    affine = np.eye(4)
    affine[:3] = LPS_TO_RAS @ np.stack(columns, axis=1)
    return affine


def lay_out(planes: Sequence[Plane], uneven: Uneven = None) -> SliceGrid:
    """The grid of one stack's slices, in order along the normal, no two at one position.

    uneven: what becomes of slices that lie too unevenly, or whose step changes (`archive.uneven`).
    Raises ScanError where slices are missing, lie too unevenly to interpolate, or are shifted against each other.
    """
    first = planes[0]
    axes, (row_mm, column_mm) = first.axes, first.spacing
    depths = _depths(planes) - _depths(planes[:1])
    sources, corrections = _even(depths, uneven)
    num_slices = len(planes) if sources is None else len(sources)
    spacing = depths[-1] / (num_slices - 1)
    drift = _drift(planes, depths)
    angle = math.degrees(math.atan(float(np.linalg.norm(drift))))
    if angle > LARGEST_TILT_DEGREES:
        raise ScanError(f"the slices are staggered at {angle:.0f}°, too far for a gantry tilt")
    if angle <= SMALLEST_TILT_DEGREES:
        step, moves, first_row, first_column = axes[2] + drift @ axes[[1, 0]], None, 0, 0
        rows, columns = first.shape
    else:
        moves = np.round(depths[:, None] * drift / first.spacing, 6)
        first_row, first_column = np.floor(moves.min(axis=0)).astype(int).tolist()
        rows, columns = (np.array(first.shape) + np.ceil(np.ptp(moves, axis=0))).astype(int).tolist()
        if rows > 2 * first.shape[0] or columns > 2 * first.shape[1]:
            raise ScanError(f"the first and the last slice do not overlap: they are tilted by {angle:.1f}°")
        moves -= (first_row, first_column)
        step = axes[2]
        corrections = (f"gantry tilt of {angle:.1f}° removed by linear resampling in the slices", *corrections)
    across, down = axes[0] * column_mm, axes[1] * row_mm
    origin = np.array(first.position) + first_column * across + first_row * down
    affine = _affine(across, down, step * spacing, origin)
    return SliceGrid((num_slices, rows, columns), affine, moves, sources, corrections)


def _drift(planes: Sequence[Plane], depths: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far slices move along rows and columns per mm along the normal; ScanError if not in a straight line."""
    across, down, _ = planes[0].axes
    moved = (np.array([plane.position for plane in planes]) - planes[0].position) @ np.stack([down, across], axis=1)
    drift = depths @ moved / (depths @ depths)
    astray = float(np.abs(moved - depths[:, None] * drift).max())
    if astray > 0.5 * min(planes[0].spacing):
        raise ScanError(f"slices are shifted against each other by up to {astray:.2f} mm in their plane")
    return drift


def _tolerance(usual: float) -> float:
    """How far steps may be from the usual one: 1 % or 0.02 mm, whichever is more, but no more than 10 %."""
    return min(max(0.01 * usual, 0.02), 0.1 * usual)


def _times(steps: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """How many usual steps, that is medians, each step is; None where one is no whole number of them."""
    usual = float(np.median(steps))
    times = np.rint(steps / usual)
    is_whole = times.min() >= 1 and (np.abs(steps - times * usual) <= _tolerance(usual) * np.maximum(times, 1)).all()
    return times if is_whole else None


def are_slices_of_a_stack(depths: Sequence[float]) -> bool:
    """Whether places along a normal, in mm, are those of a stack: evenly spaced, though some may be missing."""
    places = np.unique(depths)
    return len(places) >= MIN_SLICES and _times(np.diff(places)) is not None


def _even(depths: NDArray[np.float64], uneven: Uneven) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """Where to take evenly spaced slices (None: where they are), and what that changes. ScanError if impossible."""
    steps = np.diff(depths)
    usual = float(np.median(steps))
    if (np.abs(steps - usual) <= _tolerance(usual)).all():
        return None, ()
    finest, is_wide = float(steps.min()), steps.max() > LARGEST_STEP_RATIO * steps.min()
    change = _change_of_step(steps)
    if change is not None:
        words = (
            f"the step between slices changes from {steps[change - 1]:.2f} to {steps[change]:.2f} mm after slice "
            f"{change + 1} of {len(depths)}"
        )
    elif (times := _times(steps)) is not None:
        missing, gap = int(times.sum()) - len(times), int(np.argmax(times > 1))
        raise ScanError(
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing: after slice {gap + 1} of {len(depths)} the "
            f"next is {steps[gap]:.2f} mm away, where {usual:.2f} mm is usual"
        )
    else:
        words = f"the slices are {finest:.2f} to {steps.max():.2f} mm apart"
    is_slight = steps.max() < LARGEST_UNEVENNESS * usual and finest > usual / LARGEST_UNEVENNESS
    if not is_slight and (uneven is None or is_wide):
        too_uneven = "" if change is not None else ", too uneven to interpolate"
        remedy = "" if is_wide else f": archive.uneven=resample makes it even at {finest:.2f} mm"
        raise ScanError(f"{words}{too_uneven}{remedy}")
    # Slightly uneven: as many slices as there were. Both ends stay where they are.
    num = len(depths) if is_slight else round(depths[-1] / finest) + 1
    even = np.linspace(0, depths[-1], num)
    sources = np.interp(even, depths, np.arange(len(depths)))
    return sources, (f"{words}: resampled linearly to {even[1]:.2f} mm",)


def _change_of_step(steps: NDArray[np.float64]) -> int | None:
    """The first step that is unlike the one before, where every run of like steps is of two or more; else None.

    A slice that is missing makes one step larger, and not its neighbours.
    """
    starts = [0]
    for index, step in enumerate(steps.tolist()):
        first = float(steps[starts[-1]])
        if abs(step - first) > _tolerance(first):
            starts.append(index)
    is_change = len(starts) > 1 and min(np.diff([*starts, len(steps)])) > 1
    return starts[1] if is_change and steps.max() >= LARGEST_UNEVENNESS * steps.min() else None


def of_one_type(slices: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Slices in one type that holds the values of all, one of theirs if possible, and words for that."""
    types = sorted({pixels.dtype for pixels in slices}, key=lambda dtype: (dtype.itemsize, dtype.kind))
    if len(types) == 1:
        return list(slices), ()
    least, most = min(pixels.min() for pixels in slices), max(pixels.max() for pixels in slices)
    limits = {dtype: np.iinfo(dtype) for dtype in types if dtype.kind in "iu"}
    fitting = [dtype for dtype, limit in limits.items() if limit.min <= least and most <= limit.max]
    dtype = fitting[0] if fitting and len(limits) == len(types) else np.result_type(*types)
    return [pixels.astype(dtype) for pixels in slices], (f"slices of {len(types)} types stored as {dtype.name}",)


def fill(grid: SliceGrid, slices: Sequence[NDArray[Any]], outside: float | None = None) -> NDArray[Any]:
    """Slices [rows, columns, ...] on the grid [slices, rows, columns, ...], of the same type.

    Places that no slice covers get `outside`, or else the smallest value of the stack.
    """
    if grid.moves is not None:
        smallest = min(pixels.min() for pixels in slices) if outside is None else outside
        slices = [
            moved(pixels, move, grid.shape[1:], smallest) for pixels, move in zip(slices, grid.moves, strict=True)
        ]
    if grid.sources is None:
        return np.stack(slices)
    before = np.minimum(grid.sources.astype(int), len(slices) - 2)
    shares = (grid.sources - before).astype(np.float32)
    voxels = np.empty((len(shares), *slices[0].shape), slices[0].dtype)
    for number, (index, share) in enumerate(zip(before.tolist(), shares, strict=True)):
        voxels[number] = blend(slices[index], slices[index + 1], share)
    return voxels
