"""Where the patterns of a visit lie in its scan: boxes in mm and in voxels, with their labels and numbers."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import VolumeRecord
from raygenesis.discovery.coordinates import is_in_plane
from raygenesis.discovery.cubes import origin_of, size_mm
from raygenesis.discovery.visits import Visit
from raygenesis.patterns.schema import UNLABELLED, VALIDATION, PlannedPattern
from raygenesis.settings import DiscoverySettings, Scale
from raygenesis.settings.streams import PATTERNS, RANDOM_CROPS

# Random crops of a scan that `pattern_number` has numbers for.
MOST_CROPS = 2**15


def patterns_of(
    visit: Visit, volume: VolumeRecord, centres_mm: NDArray[np.float64], discovery: DiscoverySettings, seed: int
) -> list[PlannedPattern]:
    """The patterns of a visit, every coordinate at every scale.

    centres_mm: float64 [C, ndim] from the scan's corner. What is random depends on the seed, the reference, the split
    and the rank alone.
    """
    num_coordinates, ndim = centres_mm.shape
    generator = PATTERNS.generator(seed, visit["reference"], visit["rank"], int(visit["split"] == VALIDATION))
    in_plane = np.array([is_in_plane(axis, ndim) for axis in range(ndim)])
    rows = []
    for coordinate, centre in enumerate(centres_mm):
        label = visit["reference"] * num_coordinates + coordinate
        for number, scale in enumerate(discovery.scales):
            resize, *shift = generator.uniform(-1, 1, 1 + ndim)
            moved = centre + in_plane * scale.shift_mm * np.array(shift)
            rows.append(_pattern(visit, volume, label, coordinate, number, moved, resized(scale, resize)))
    return rows


def crops_of(
    visit: Visit,
    volume: VolumeRecord,
    places_mm: NDArray[np.float64],
    step_mm: NDArray[np.float64],
    discovery: DiscoverySettings,
    seed: int,
) -> list[PlannedPattern]:
    """`discovery.num_crops` random crops of a scan.

    places_mm: where they may be centred, float64 [n, ndim] from the scan's corner, on a grid of `step_mm` ([ndim]).
    What is random depends on the seed and the volume's id alone, and the first crops are those of fewer.
    """
    assert discovery.num_crops is not None
    number_of_volume = int.from_bytes(hashlib.sha256(volume["volume_id"].encode()).digest()[:8])
    generator = RANDOM_CROPS.generator(seed, number_of_volume)
    rows = []
    # One row of numbers a crop: which place, how far from it, how much larger.
    for number, (which, *offset, resize) in enumerate(generator.random((discovery.num_crops, 2 + len(step_mm)))):
        scale = number % len(discovery.scales)
        centre = places_mm[int(which * len(places_mm))] + (np.array(offset) - 0.5) * step_mm
        extent = resized(discovery.scales[scale], 2 * resize - 1)
        rows.append(_pattern(visit, volume, UNLABELLED, number, scale, centre, extent))
    return rows


def resized(scale: Scale, resize: float) -> NDArray[np.float64]:
    """The extent of a crop in mm, in plane larger or smaller by the share `resize`, in [-1, 1], of the jitter."""
    extent = np.array(scale.extent_mm)
    in_plane = np.array([is_in_plane(axis, len(extent)) for axis in range(len(extent))])
    return extent * (1 + in_plane * scale.extent_jitter * resize)


def _pattern(
    visit: Visit,
    volume: VolumeRecord,
    label: int,
    coordinate: int,
    scale: int,
    centre_mm: NDArray[np.float64],
    extent_mm: NDArray[np.float64],
) -> PlannedPattern:
    origin, spacing = origin_of(centre_mm, extent_mm, size_mm(volume)), np.array(volume["spacing_mm"])
    reference = max(visit["reference"], 0)  # random crops have none
    return {
        # Unique whatever R, K, C and the number of scales: the same pattern keeps its number.
        "pattern_id": pattern_number(visit["split"] == VALIDATION, reference, visit["rank"], coordinate, scale),
        "label": label,
        "reference": visit["reference"],
        "coordinate": coordinate,
        "rank": visit["rank"],
        "scale": scale,
        "split": visit["split"],
        "volume_id": volume["volume_id"],
        "origin_mm": origin.tolist(),
        "extent_mm": extent_mm.tolist(),
        "origin_voxels": (origin / spacing).tolist(),
        "extent_voxels": (extent_mm / spacing).tolist(),
    }


def pattern_number(is_held_out: bool, reference: int, rank: int, coordinate: int, scale: int) -> int:
    """A pattern's number, one int64: 1 bit split, 16 reference, 24 rank, 15 coordinate, 7 scale."""
    return ((((int(is_held_out) << 16 | reference) << 24 | rank) << 15 | coordinate) << 7) | scale
