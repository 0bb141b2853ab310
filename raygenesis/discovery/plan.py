"""The plan of a discovery: which patients, which places, and the order in which scans are read, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raygenesis.config import DiscoverySettings
from raygenesis.discovery.coordinates import corresponding, is_in_plane
from raygenesis.discovery.crop import place, size_mm
from raygenesis.patterns.schema import PLAN, TRAINING, VALIDATION


def plan_patterns(
    references: Sequence[Mapping[str, Any]],
    centres_mm: Sequence[NDArray[np.float64]],
    neighbours: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]],
    settings: DiscoverySettings,
    seed: int,
) -> pa.Table:
    """Every pattern to crop, in the order in which it is stored (schema PLAN).

    references: catalogue rows; centres_mm: [C, ndim] for each, in mm from its corner; neighbours: for each, the
    catalogue rows by split, nearest first, the reference itself the first of the training rows.
    """
    rows: list[dict[str, Any]] = []
    for reference, (anchor, centres, found) in enumerate(zip(references, centres_mm, neighbours, strict=True)):
        for split, first_rank in ((TRAINING, 0), (VALIDATION, 1)):
            for rank, volume in enumerate(found[split], first_rank):
                generator = np.random.default_rng(
                    np.random.SeedSequence(seed, spawn_key=(reference, rank, first_rank))
                )
                there = corresponding(centres, size_mm(anchor), size_mm(volume), settings.correspondence)
                rows += _patterns_of(volume, there, reference, rank, split, settings, generator)
    ordered = _in_reading_order(rows, settings.patterns_per_part)
    return pa.Table.from_pylist(ordered, PLAN)


def _patterns_of(
    volume: Mapping[str, Any],
    centres: NDArray[np.float64],
    reference: int,
    rank: int,
    split: str,
    settings: DiscoverySettings,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """The patterns of one volume for one reference: every coordinate at every scale."""
    num_coordinates, num_scales = len(centres), len(settings.scales)
    ndim = centres.shape[1]
    in_plane = np.array([is_in_plane(axis, ndim) for axis in range(ndim)])
    size = size_mm(volume)
    rows = []
    for coordinate, centre in enumerate(centres):
        for number, scale in enumerate(settings.scales):
            resize, *shift = generator.uniform(-1, 1, 1 + ndim)
            extent = np.array(scale.extent_mm) * (1 + in_plane * scale.extent_jitter * resize)
            origin = place(centre + in_plane * scale.shift_mm * np.array(shift), extent, size)
            rows.append(
                {
                    # Unique whatever R, K, C and the number of scales: the same pattern keeps its number.
                    "pattern_id": _pack(split == VALIDATION, reference, rank, coordinate, number),
                    "label": reference * num_coordinates + coordinate,
                    "reference": reference,
                    "coordinate": coordinate,
                    "rank": rank,
                    "scale": number,
                    "split": split,
                    "volume_id": volume["volume_id"],
                    "origin_mm": origin.tolist(),
                    "extent_mm": extent.tolist(),
                    "origin_voxels": (origin / np.array(volume["spacing_mm"])).tolist(),
                    "extent_voxels": (extent / np.array(volume["spacing_mm"])).tolist(),
                }
            )
    assert len(rows) == num_coordinates * num_scales
    return rows


def _pack(is_validation: bool, reference: int, rank: int, coordinate: int, scale: int) -> int:
    """One int64: 1 bit split, 16 bits reference, 24 bits rank, 15 bits coordinate, 7 bits scale."""
    return ((((int(is_validation) << 16 | reference) << 24 | rank) << 15 | coordinate) << 7) | scale


def _in_reading_order(rows: list[dict[str, Any]], patterns_per_part: int) -> list[dict[str, Any]]:
    """Number the parts: every volume falls in one part, nearest volumes first, splits never share a part.

    Within a part rows go by rank, reference, coordinate and scale, so that `rank < K` and `coordinate < C` leave out
    whole row groups and whole parts.
    """
    by_volume: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_volume.setdefault((row["split"], row["volume_id"]), []).append(row)
    order = sorted(by_volume, key=lambda key: (key[0], min(row["rank"] for row in by_volume[key]), key[1]))
    part, filled, previous = -1, 0, None
    for key in order:
        patterns = by_volume[key]
        if part < 0 or key[0] != previous or filled + len(patterns) > patterns_per_part:
            part, filled, previous = part + 1, 0, key[0]
        filled += len(patterns)
        for row in patterns:
            row["part"] = part
    return sorted(
        rows, key=lambda row: (row["part"], row["rank"], row["reference"], row["coordinate"], row["scale"])
    )
