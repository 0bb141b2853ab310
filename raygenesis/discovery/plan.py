"""The plan of a discovery: which scans are visited for which reference, each scan once, and the patterns of a visit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.discovery.coordinates import is_in_plane
from raygenesis.discovery.cubes import origin_of, size_mm
from raygenesis.patterns.schema import TRAINING, UNLABELLED, VALIDATION
from raygenesis.settings import DiscoverySettings, Scale

# One row a visit: a scan whose patterns at one reference's coordinates are to be cropped.
VISIT = pa.schema(
    [
        ("part", pa.int32()),
        ("split", pa.string()),
        ("reference", pa.int32()),
        ("rank", pa.int32()),
        ("volume_id", pa.string()),
    ]
)

SPLITS = (TRAINING, VALIDATION)

# Random crops of a scan that `pack` has numbers for.
MOST_CROPS = 2**15


def plan_visits(
    neighbours: Sequence[Mapping[str, Sequence[str] | pa.StringArray]], patterns_per_visit: int, patterns_per_part: int
) -> pa.Table:
    """Every visit, in the order in which it is stored (schema VISIT).

    neighbours: for each reference volume ids by split, nearest first, the reference itself the first of the training
    ones. Every volume falls in one part, nearest volumes first; splits never share a part.
    """
    groups = [_texts(found[split]) for found in neighbours for split in SPLITS]
    sizes, ids = [len(group) for group in groups], pa.concat_arrays(groups)
    # One number a visit: of its split, its reference, and its rank, which held-out patients count from 1.
    split = np.repeat(np.arange(len(groups)) % 2, sizes)
    reference = np.repeat(np.arange(len(groups)) // 2, sizes)
    rank = np.concatenate([number % 2 + np.arange(size) for number, size in enumerate(sizes)])
    # Each volume of a split is one scan, whose visits stay together; `scans` are in order of split and id.
    order_of_id = pc.rank(ids, tiebreaker="dense").to_numpy().astype(np.int64)
    scans, scan = np.unique(split * (len(ids) + 1) + order_of_id, return_inverse=True)
    split_of_scan = scans // (len(ids) + 1)
    first_rank = np.full(len(scans), len(ids))
    np.minimum.at(first_rank, scan, rank)
    order = np.lexsort((scans, first_rank, split_of_scan))
    num_patterns = np.bincount(scan) * patterns_per_visit
    part = np.empty(len(scans), np.int32)
    part[order] = _filled(split_of_scan[order], num_patterns[order], patterns_per_part)
    rows = np.lexsort((reference, rank, part[scan]))
    plan = {
        "part": part[scan[rows]], "split": pa.array(SPLITS).take(pa.array(split[rows])),
        "reference": reference[rows], "rank": rank[rows], "volume_id": ids.take(pa.array(rows)),
    }  # fmt: skip
    return pa.table(plan).cast(VISIT)


def _texts(texts: Sequence[str] | pa.StringArray) -> pa.StringArray:
    return texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())


def _filled(split: NDArray[np.int64], num_patterns: NDArray[np.int64], patterns_per_part: int) -> NDArray[np.int32]:
    """The part of each scan, in order: a new one where the last is full, or another split begins."""
    part, filled, previous = -1, 0, -1
    parts = np.empty(len(split), np.int32)
    for number, (own, count) in enumerate(zip(split, num_patterns, strict=True)):
        if own != previous or filled + count > patterns_per_part:
            part, filled, previous = part + 1, 0, own
        filled += count
        parts[number] = part
    return parts


def patterns_of(
    visit: Mapping[str, Any],
    volume: Mapping[str, Any],
    centres_mm: NDArray[np.float64],
    settings: DiscoverySettings,
    seed: int,
) -> list[dict[str, Any]]:
    """The patterns of a visit, every coordinate at every scale: rows of schema PATTERN but for their cubes.

    volume: catalogue row; centres_mm: [C, ndim] in mm from its corner. What is random depends on the seed, the
    reference, the split and the rank alone.
    """
    num_coordinates, ndim = centres_mm.shape
    key = (visit["reference"], visit["rank"], int(visit["split"] == VALIDATION))
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    in_plane = np.array([is_in_plane(axis, ndim) for axis in range(ndim)])
    rows = []
    for coordinate, centre in enumerate(centres_mm):
        label = visit["reference"] * num_coordinates + coordinate
        for number, scale in enumerate(settings.scales):
            resize, *shift = generator.uniform(-1, 1, 1 + ndim)
            moved = centre + in_plane * scale.shift_mm * np.array(shift)
            rows.append(_pattern(visit, volume, label, coordinate, number, moved, resized(scale, resize)))
    return rows


def crops_of(
    visit: Mapping[str, Any],
    volume: Mapping[str, Any],
    places_mm: NDArray[np.float64],
    step_mm: NDArray[np.float64],
    settings: DiscoverySettings,
    seed: int,
) -> list[dict[str, Any]]:
    """`settings.num_crops` random crops of a scan: rows of schema PATTERN but for their cubes.

    places_mm: where they may be centred, [n, ndim] in mm from the scan's corner, on a grid of `step_mm`. What is random
    depends on the seed and the volume's id alone, and the first crops are those of fewer.
    """
    assert settings.num_crops is not None
    number_of_volume = int.from_bytes(hashlib.sha256(volume["volume_id"].encode()).digest()[:8])
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(8, number_of_volume)))
    rows = []
    # One row of numbers a crop: which place, how far from it, how much larger.
    for number, (which, *offset, resize) in enumerate(generator.random((settings.num_crops, 2 + len(step_mm)))):
        scale = number % len(settings.scales)
        centre = places_mm[int(which * len(places_mm))] + (np.array(offset) - 0.5) * step_mm
        extent = resized(settings.scales[scale], 2 * resize - 1)
        rows.append(_pattern(visit, volume, UNLABELLED, number, scale, centre, extent))
    return rows


def resized(scale: Scale, resize: float) -> NDArray[np.float64]:
    """The extent of a crop in mm, in plane larger or smaller by the share `resize`, in [-1, 1], of the jitter."""
    extent = np.array(scale.extent_mm)
    in_plane = np.array([is_in_plane(axis, len(extent)) for axis in range(len(extent))])
    return extent * (1 + in_plane * scale.extent_jitter * resize)


def _pattern(
    visit: Mapping[str, Any],
    volume: Mapping[str, Any],
    label: int,
    coordinate: int,
    scale: int,
    centre: NDArray[np.float64],
    extent: NDArray[np.float64],
) -> dict[str, Any]:
    origin, spacing = origin_of(centre, extent, size_mm(volume)), np.array(volume["spacing_mm"])
    reference = max(visit["reference"], 0)  # random crops have none
    return {
        # Unique whatever R, K, C and the number of scales: the same pattern keeps its number.
        "pattern_id": pack(visit["split"] == VALIDATION, reference, visit["rank"], coordinate, scale),
        "label": label,
        "reference": visit["reference"],
        "coordinate": coordinate,
        "rank": visit["rank"],
        "scale": scale,
        "split": visit["split"],
        "volume_id": volume["volume_id"],
        "origin_mm": origin.tolist(),
        "extent_mm": extent.tolist(),
        "origin_voxels": (origin / spacing).tolist(),
        "extent_voxels": (extent / spacing).tolist(),
    }


def pack(is_held_out: bool, reference: int, rank: int, coordinate: int, scale: int) -> int:
    """A pattern's number, one int64: 1 bit split, 16 reference, 24 rank, 15 coordinate, 7 scale."""
    return ((((int(is_held_out) << 16 | reference) << 24 | rank) << 15 | coordinate) << 7) | scale
