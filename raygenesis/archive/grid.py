"""Where the voxels of a scan lie: the one way from what a header says to places in mm, for every format.

A header gives an affine, or directions, steps and an origin, in some unit. What it leaves open is assumed and said in
`notes`, what it has wrong is put right and said in `corrections`, and what gives no place is a ScanError. Axes that are
not perpendicular are straightened when the scan is read (`shear.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import ArrayLike, NDArray

from raygenesis.archive.shear import straightening
from raygenesis.errors import ScanError

# ITK and DICOM count towards left and posterior, NIfTI and this project towards right and anterior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])

# Millimetres per unit of length, by the names that headers have for it.
MM_PER_UNIT = {
    "m": 1e3, "meter": 1e3, "metre": 1e3, "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0,
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3,
    "micrometer": 1e-3, "micrometre": 1e-3, "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6,
}  # fmt: skip


class Geometry(NamedTuple):
    """Shape in voxels and spacing in mm of a volume, z y x (2D: y x), in canonical axes."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a scan lie, as its file has them. Raises ScanError where the affine gives them no place.

    sides: voxels along the stored axes x y z; z of an image is 1.
    affine: float64 [4, 4], from stored index (x, y, z) to RAS+ mm.
    ndim: spatial dimensions, 3 or 2.
    corrections: what was put right, in words.
    notes: what was assumed, in words.
    """

    sides: tuple[int, ...]
    affine: NDArray[np.float64]
    ndim: int = 3
    corrections: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not places_voxels(self.affine):
            raise ScanError("the affine is singular or not finite, so positions in mm are unknown")

    def turned(self, voxels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Stored voxels [x, y, z] or [x, y, z, c], and their affine, in a Volume's order of axes; a view if possible.

        Of an image z is dropped.
        """
        orientation = self._orientation()
        turned = apply_orientation(voxels, orientation).T  # [z, y, x], or [c, z, y, x]
        return (turned[..., 0, :, :] if self.ndim == 2 else turned), self._canonical_affine(orientation)

    @property
    def geometry(self) -> Geometry:
        """The geometry of the volume that the grid becomes: in canonical axes, and right-angled."""
        orientation = self._orientation()
        sides = np.empty(3, int)
        sides[orientation[:, 0].astype(int)] = self.sides
        shape, affine = tuple(sides[: self.ndim][::-1].tolist()), self._canonical_affine(orientation)
        straight = straightening(shape, affine)
        if straight is not None:
            shape, affine = straight.shape, straight.affine
        return Geometry(shape, spacing_of(affine, self.ndim))

    def _canonical_affine(self, orientation: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.affine @ inv_ornt_aff(orientation, self.sides)

    def _orientation(self) -> NDArray[np.float64]:
        """Canonical axis and direction of each stored axis; of an image the slice comes last, whatever its plane."""
        orientation = io_orientation(self.affine)
        if self.ndim == 2:
            across = orientation[2, 0]
            orientation[orientation[:, 0] > across, 0] -= 1
            orientation[2, 0] = 2
        return orientation


def grid_of_steps(
    sides: Sequence[int], directions: ArrayLike, steps: ArrayLike, origin: ArrayLike | None, ndim: int,
    mm_per_unit: float = 1.0,
) -> Grid:  # fmt: skip
    """The grid of a header that gives a voxel size, rather than an affine.

    Args:
        sides: voxels along the stored axes x y z.
        directions: [3, 3], a column for each axis, to RAS+.
        steps: the voxel size along each axis; 1 mm is assumed where it is 0 or not finite.
        origin: the place of the first voxel, RAS+; None puts the middle of the scan at 0.
        ndim: spatial dimensions, 3 or 2.
        mm_per_unit: what steps and origin are multiplied by.

    Raises ScanError for directions that give no place.
    """
    lengths = np.array(steps, np.float64) * mm_per_unit
    unknown = ~np.isfinite(lengths) | (lengths == 0)
    lengths[unknown] = 1.0
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, np.float64) * lengths
    middle = (np.asarray(sides) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle if origin is None else np.asarray(origin, np.float64) * mm_per_unit
    return Grid(tuple(sides), affine, ndim, notes=no_voxel_size(int(unknown[:ndim].sum()), ndim))


def no_voxel_size(num_unknown: int, ndim: int) -> tuple[str, ...]:
    """The note that so many of a scan's axes have no voxel size; none where all have one."""
    return (f"no voxel size along {num_unknown} of {ndim} axes: 1 mm assumed",) if num_unknown else ()


def mm_per(unit: str) -> float:
    """Millimetres per unit of a name. Raises ScanError for a unit that is none of length."""
    name = unit.strip().lower()
    factor = MM_PER_UNIT.get(name) or MM_PER_UNIT.get(name.removesuffix("s"))
    if factor is None:
        raise ScanError("its unit of length is not known: expected m, cm, mm, um or nm")
    return factor


def spacing_of(affine: NDArray[np.float64], ndim: int) -> tuple[float, ...]:
    """Lengths of the affine's columns, slowest axis first, in mm."""
    xyz = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(float(step) for step in xyz[:ndim][::-1])


def places_voxels(affine: NDArray[np.float64]) -> bool:
    """Whether every voxel has a place of its own: finite numbers, and three axes that are not in one plane."""
    if not np.isfinite(affine).all():
        return False
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((steps > 0).all() and np.isfinite(steps).all() and abs(np.linalg.det(affine[:3, :3] / steps)) > 1e-6)
