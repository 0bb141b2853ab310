"""The grid of a NIfTI header: its sform, its qform, or no more than voxel sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.quaternions import quat2mat
from numpy.typing import NDArray

from raygenesis.archive.grid import Grid, grid_of_steps, mm_per, places_voxels
from raygenesis.errors import ScanError

# Squared length of (b, c, d) above 1 that rounding explains: single precision, or four decimal places.
QUATERNION_ROUNDING = 3e-4

# Shares of a voxel by which two of a header's grids may differ and still be the same: of places, and of sizes.
SAME_PLACE, SAME_SIZE = 0.5, 0.01


def grid_of(header: Any, sides: Sequence[int]) -> Grid:
    """The grid of a header (nibabel's, pixdim as stored) for these sides x y z: sform before qform before sizes alone.

    Raises ScanError where it gives no place.
    """
    ndim = 2 if sides[2] == 1 else 3
    mm, notes = _unit(header)
    lost: tuple[str, ...] = ()
    if header["sform_code"] > 0:
        sform = np.asarray(header.get_sform(), np.float64)
        if places_voxels(sform) or header["qform_code"] <= 0:
            notes += _disagreements(header, sform, sides, ndim)
            sform[:3] *= mm
            return Grid(tuple(sides), sform, ndim, notes=notes)
        lost = ("the sform gives voxels no place: qform taken",)
    grid, corrections = _grid_of_sizes(header, sides, ndim, mm)
    return Grid(grid.sides, grid.affine, ndim, (*lost, *corrections), (*notes, *grid.notes))


def _unit(header: Any) -> tuple[float, tuple[str, ...]]:
    """Millimetres per unit of the header, and the note where it has none."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:  # a code that the standard does not have
        unit = "unknown"
    return (1.0, ("no unit of length is stored: mm assumed",)) if unit == "unknown" else (mm_per(unit), ())


def _grid_of_sizes(header: Any, sides: Sequence[int], ndim: int, mm: float) -> tuple[Grid, tuple[str, ...]]:
    """The grid of the header's voxel sizes, turned by its quaternion where it has one, and what was put right."""
    sizes = np.array(header["pixdim"][1:4], np.float64)
    corrections: tuple[str, ...] = ()
    if (sizes[:ndim] < 0).any():
        corrections = ("negative voxel sizes taken as positive",)
    sizes = np.abs(sizes)
    if header["qform_code"] > 0:
        directions, more = _turn(header)
        if header["pixdim"][0] < 0:
            directions[:, 2] *= -1
        origin = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
        return grid_of_steps(sides, directions, sizes, origin, ndim, mm), corrections + more
    grid = grid_of_steps(sides, np.diag([-1.0, 1.0, 1.0]), sizes, None, ndim, mm)
    note = "no orientation is stored: axes taken as right to left, anterior and superior"
    return Grid(grid.sides, grid.affine, ndim, notes=(note, *grid.notes)), corrections


def _turn(header: Any) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The rotation of the header's quaternion, and the correction where it was longer than 1 by rounding."""
    vector = np.array([header[f"quatern_{name}"] for name in "bcd"], np.float64)
    squared = float(vector @ vector)
    if not squared <= 1 + QUATERNION_ROUNDING:
        raise ScanError("its quaternion is longer than 1, so the orientation is unknown")
    words = "a quaternion longer than 1 by rounding shortened to 1"
    rotation = quat2mat([np.sqrt(max(0.0, 1 - squared)), *vector])  # divides by the length
    return rotation, (words,) if squared > 1 + np.finfo(np.float32).eps else ()


def _disagreements(header: Any, sform: NDArray[np.float64], sides: Sequence[int], ndim: int) -> tuple[str, ...]:
    """The note that another grid of the header is not that of its sform."""
    if header["qform_code"] > 0:
        corners = np.array([*itertools.product(*((0, side - 1) for side in sides))])
        try:
            qform = _grid_of_sizes(header, sides, ndim, 1.0)[0].affine
        except ScanError:
            qform = np.full((4, 4), np.inf)
        with np.errstate(invalid="ignore"):
            apart = np.linalg.norm((corners @ (sform - qform)[:3, :3].T) + (sform - qform)[:3, 3], axis=1).max()
        voxel = np.linalg.norm(sform[:3, :ndim], axis=0).min()
        return () if apart <= SAME_PLACE * voxel else ("sform and qform differ: sform taken",)
    sizes, lengths = np.abs(header["pixdim"][1 : ndim + 1]), np.linalg.norm(sform[:3, :ndim], axis=0)
    known = np.isfinite(sizes) & (sizes > 0)
    same = np.abs(sizes - lengths)[known] <= SAME_SIZE * lengths[known]
    return () if same.all() else ("sform and voxel sizes differ: sform taken",)
