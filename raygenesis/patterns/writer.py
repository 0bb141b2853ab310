"""Writing one part of the pattern store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from raygenesis.patterns.schema import PATTERN, ROWS_PER_GROUP
from raygenesis.workspace import read_json, write_json, write_table, xxh3_of


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
    write_json(_seal(path), checksum(path))
    return path


def is_sealed(path: Path) -> bool:
    """Whether a part is there, as it was written."""
    return path.is_file() and read_json(_seal(path)) == checksum(path)


def _seal(path: Path) -> Path:
    """Where a part's checksum is kept beside it, so that one that was damaged is not taken for whole."""
    return path.with_suffix(".json")


def checksum(path: Path) -> dict[str, Any]:
    """What the manifest keeps of a part: {"bytes": its size, "xxh3": xxh3_64 of its content, 16 hex digits}."""
    return {"bytes": path.stat().st_size, "xxh3": xxh3_of(path)}


def _leaf(column: str) -> str:
    return f"{column}.list.element" if column.endswith(("_mm", "_voxels")) else column
