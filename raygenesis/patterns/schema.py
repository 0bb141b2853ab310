"""Columns of the pattern store, and its rows as Python reads them."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

TRAINING, VALIDATION = "training", "validation"

UNLABELLED = -1  # label and reference of a random crop

PATTERN = pa.schema(
    [
        ("pattern_id", pa.int64()),
        ("label", pa.int32()),  # reference × C + coordinate
        ("reference", pa.int32()),
        ("coordinate", pa.int16()),  # of random crops: the number among those of its scan
        ("rank", pa.int32()),  # 0: the reference itself (random crops: the first scan); held-out patients count from 1
        ("scale", pa.int8()),
        ("split", pa.string()),
        ("volume_id", pa.string()),
        ("origin_mm", pa.list_(pa.float64())),  # from the corner of the scan's voxel array, z y x (2D: y x)
        ("extent_mm", pa.list_(pa.float64())),
        ("origin_voxels", pa.list_(pa.float64())),  # the same in voxels of the scan's finest level
        ("extent_voxels", pa.list_(pa.float64())),
        ("cube", pa.binary()),  # cells.encode of a cube of the manifest's shape
    ]
)

# Small enough that a batch of random patterns reads little it does not need.
ROWS_PER_GROUP = 16


class PlannedPattern(TypedDict):
    """A row of the store (schema PATTERN) before its cube is cropped."""

    pattern_id: int
    label: int
    reference: int
    coordinate: int
    rank: int
    scale: int
    split: str
    volume_id: str
    origin_mm: list[float]
    extent_mm: list[float]
    origin_voxels: list[float]
    extent_voxels: list[float]


class PatternRow(PlannedPattern):
    """A row of the store (schema PATTERN); a table of some columns has these keys alone."""

    cube: bytes
