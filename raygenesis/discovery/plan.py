"""The plan of a discovery: which scans are visited for which reference, each scan once, and the patterns of a visit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raygenesis.config import DiscoverySettings
from raygenesis.discovery.coordinates import is_in_plane
from raygenesis.discovery.crop import place, size_mm
from raygenesis.patterns.schema import TRAINING, VALIDATION

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


def plan_visits(
    neighbours: Sequence[Mapping[str, Sequence[str]]], patterns_per_visit: int, patterns_per_part: int
) -> pa.Table:
    """Every visit, in the order in which it is stored (schema VISIT).

    neighbours: for each reference volume ids by split, nearest first, the reference itself the first of the training
    ones. Every volume falls in one part, nearest volumes first; splits never share a part.
    """
    visits: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for reference, found in enumerate(neighbours):
        for split, first_rank in ((TRAINING, 0), (VALIDATION, 1)):
            for rank, volume_id in enumerate(found[split], first_rank):
                visit = {"split": split, "reference": reference, "rank": rank, "volume_id": volume_id}
                visits.setdefault((split, volume_id), []).append(visit)
    order = sorted(visits, key=lambda key: (key[0], min(visit["rank"] for visit in visits[key]), key[1]))
    part, filled, previous = -1, 0, None
    rows = []
    for key in order:
        num_patterns = len(visits[key]) * patterns_per_visit
        if part < 0 or key[0] != previous or filled + num_patterns > patterns_per_part:
            part, filled, previous = part + 1, 0, key[0]
        filled += num_patterns
        rows += [{**visit, "part": part} for visit in visits[key]]
    rows.sort(key=lambda row: (row["part"], row["rank"], row["reference"]))
    return pa.Table.from_pylist(rows, VISIT)


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
    is_held_out = visit["split"] == VALIDATION
    key = (visit["reference"], visit["rank"], int(is_held_out))
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    in_plane = np.array([is_in_plane(axis, ndim) for axis in range(ndim)])
    size, spacing = size_mm(volume), np.array(volume["spacing_mm"])
    rows = []
    for coordinate, centre in enumerate(centres_mm):
        for number, scale in enumerate(settings.scales):
            resize, *shift = generator.uniform(-1, 1, 1 + ndim)
            extent = np.array(scale.extent_mm) * (1 + in_plane * scale.extent_jitter * resize)
            origin = place(centre + in_plane * scale.shift_mm * np.array(shift), extent, size)
            rows.append(
                {
                    # Unique whatever R, K, C and the number of scales: the same pattern keeps its number.
                    "pattern_id": pack(is_held_out, visit["reference"], visit["rank"], coordinate, number),
                    "label": visit["reference"] * num_coordinates + coordinate,
                    "reference": visit["reference"],
                    "coordinate": coordinate,
                    "rank": visit["rank"],
                    "scale": number,
                    "split": visit["split"],
                    "volume_id": volume["volume_id"],
                    "origin_mm": origin.tolist(),
                    "extent_mm": extent.tolist(),
                    "origin_voxels": (origin / spacing).tolist(),
                    "extent_voxels": (extent / spacing).tolist(),
                }
            )
    return rows


def pack(is_held_out: bool, reference: int, rank: int, coordinate: int, scale: int) -> int:
    """A pattern's number, one int64: 1 bit split, 16 reference, 24 rank, 15 coordinate, 7 scale."""
    return ((((int(is_held_out) << 16 | reference) << 24 | rank) << 15 | coordinate) << 7) | scale
