"""Writing one part of the pattern store."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from raygenesis.patterns.schema import PATTERN, ROWS_PER_GROUP
from raygenesis.workspace import write_table


def part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.parquet"


def write_part(folder: Path, part: int, patterns: pa.Table) -> Path:
    """Publish rows (schema PATTERN, in the plan's order) as one part; the same rows give the same bytes."""
    path = part_path(folder, part)
    columns = [name for name in PATTERN.names if name != "cube"]
    write_table(
        path,
        patterns.cast(PATTERN),
        row_group_size=ROWS_PER_GROUP,
        use_dictionary=["split", "volume_id"],
        # Cells are compressed already.
        compression={**{_leaf(name): "zstd" for name in columns}, "cube": "none"},
        write_statistics=["rank", "coordinate", "scale", "reference", "split", "pattern_id", "label"],
    )
    return path


def _leaf(column: str) -> str:
    return f"{column}.list.element" if column.endswith(("_mm", "_voxels")) else column
