"""Where in the reference patient patterns are cropped: random but fixed positions that cover the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from raygenesis.archive.intake.preparation import body
from raygenesis.errors import RaygenesisError
from raygenesis.settings import DiscoverySettings, Scale

# A voxel shows anatomy where its neighbourhood varies by this share of the scan's standard deviation.
TEXTURE = 0.1
# By so much float32 may let the values of a flat scan in [0, 1] vary.
ROUNDING = 5e-4

NO_PLACE = (
    "no place where a crop fits and shows anatomy: lower discovery.scales' extent_mm or discovery.min_content, or "
    "widen discovery.box"
)


class CoordinateError(RaygenesisError):
    """The coordinates that were asked for do not fit."""


def largest_extent(scales: Sequence[Scale]) -> tuple[float, ...]:
    """The extent in mm that holds a crop of any scale wherever its jitter puts it; z y x, or y x."""
    return tuple(
        max(
            scale.extent_mm[axis] * (1 + (scale.extent_jitter if is_in_plane(axis, len(scale.extent_mm)) else 0))
            + 2 * (scale.shift_mm if is_in_plane(axis, len(scale.extent_mm)) else 0)
            for scale in scales
        )
        for axis in range(len(scales[0].extent_mm))
    )


def is_in_plane(axis: int, ndim: int) -> bool:
    """Whether an axis of z y x (or y x) lies in the slice plane."""
    return ndim == 2 or axis > 0


def content(scan: NDArray[np.float32], window: Sequence[int]) -> NDArray[np.float32]:
    """Share of the voxels in a window centred on each voxel that show anatomy, float32 in [0, 1].

    The content rule: a voxel shows anatomy where the values of its 3×3×3 (2D: 3×3) neighbourhood vary by at least a
    tenth of the whole scan's standard deviation. Air and flat tissue show none, in any modality.
    """
    mean = ndimage.uniform_filter(scan, 3, mode="nearest")
    mean_of_squares = ndimage.uniform_filter(np.square(scan), 3, mode="nearest")
    variation = np.sqrt(np.maximum(mean_of_squares - np.square(mean), 0))
    shows = variation >= max(TEXTURE * float(scan.std()), ROUNDING)
    return ndimage.uniform_filter(shows.astype(np.float32), window, mode="nearest")


def candidates(
    scan: NDArray[np.float32],
    spacing_mm: NDArray[np.float64],
    size_mm: NDArray[np.float64],
    settings: DiscoverySettings,
) -> NDArray[np.float64]:
    """Centres in mm from the scan's corner, [n, ndim], where a crop of any scale fits and shows anatomy.

    scan: at its coarse level, in [0, 1]; spacing_mm: of that level; size_mm: of the scan. Centres lie in
    `settings.box`.
    """
    reach = np.array(largest_extent(settings.scales))
    window = [max(1, round(extent / step)) for extent, step in zip(reach, spacing_mm, strict=True)]
    centres = np.indices(scan.shape).reshape(scan.ndim, -1).T + 0.5
    centres = centres * spacing_mm
    fits = ((centres >= reach / 2) & (centres <= size_mm - reach / 2)).all(1)
    for axis, (low, high) in enumerate(settings.box or ()):
        fits &= (centres[:, axis] >= low * size_mm[axis]) & (centres[:, axis] <= high * size_mm[axis])
    shows = content(scan, window).ravel() >= settings.min_content - 1e-6
    return centres[fits & shows]


def spread(
    places: NDArray[np.float64], count: int, min_distance_mm: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """`count` of the candidate places: a random first, then always the one farthest from all chosen.

    Any first C of them are the coordinates for that smaller C. Raises CoordinateError if two would lie nearer than
    `min_distance_mm`.
    """
    if not len(places):
        raise CoordinateError(NO_PLACE)
    chosen = [int(generator.integers(len(places)))]
    distance = np.linalg.norm(places - places[chosen[0]], axis=1)
    while len(chosen) < count:
        farthest = int(distance.argmax())
        if distance[farthest] < max(min_distance_mm, 1e-9):
            raise CoordinateError(
                f"discovery.num_coordinates={count} does not fit: only {len(chosen)} places at least "
                f"discovery.min_distance_mm={min_distance_mm:g} apart show anatomy; lower one of the two, or the "
                "scales' extent_mm"
            )
        chosen.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(places - places[farthest], axis=1))
    return places[chosen]


@dataclass(frozen=True)
class Frame:
    """What positions in a scan are relative to: its size and the centre of the body, float64 [ndim] in mm, z y x."""

    size_mm: NDArray[np.float64]
    body_mm: NDArray[np.float64]


def frame_of(scan: NDArray[np.float32], size_mm: NDArray[np.float64]) -> Frame:
    """The frame of a scan of so many mm from its coarse level: the body is what is brighter than Otsu's threshold."""
    where = np.argwhere(body(scan))
    return Frame(size_mm, (where.mean(0) + 0.5) / np.array(scan.shape) * size_mm)


def corresponding(
    centre_mm: NDArray[np.float64], source: Frame, target: Frame, correspondence: str
) -> NDArray[np.float64]:
    """The same coordinate in another scan: centres [..., ndim] in mm from its corner.

    `relative`: the same fraction of each side; `physical`: the same offset from the centre of the body.
    """
    if correspondence == "relative":
        return centre_mm / source.size_mm * target.size_mm
    return centre_mm - source.body_mm + target.body_mm
