"""Columns of the pattern store."""

from __future__ import annotations

import pyarrow as pa

TRAINING, VALIDATION = "training", "validation"

UNLABELLED = -1  # label and reference of a random crop

_PLACE = [
    ("pattern_id", pa.int64()),
    ("label", pa.int32()),  # reference × C + coordinate
    ("reference", pa.int32()),
    ("coordinate", pa.int16()),  # of random crops: the number among those of its scan
    ("rank", pa.int32()),  # 0: the reference itself (of random crops: the first scan); held-out patients count from 1
    ("scale", pa.int8()),
    ("split", pa.string()),
    ("volume_id", pa.string()),
    ("origin_mm", pa.list_(pa.float64())),  # from the corner of the scan's voxel array, z y x (2D: y x)
    ("extent_mm", pa.list_(pa.float64())),
    ("origin_voxels", pa.list_(pa.float64())),  # the same in voxels of the scan's finest level
    ("extent_voxels", pa.list_(pa.float64())),
]

PATTERN = pa.schema([*_PLACE, ("cube", pa.binary())])  # cells.encode of a cube of the manifest's shape

# Small enough that a batch of random patterns reads little it does not need.
ROWS_PER_GROUP = 16
