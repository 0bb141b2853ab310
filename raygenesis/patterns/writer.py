"""Writing one part of the pattern store."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raygenesis.patterns.schema import PATTERN, ROWS_PER_GROUP
from raygenesis.workspace.files import Place, on_disk, publish, read_json, write_json, xxh3_of
from raygenesis.workspace.manifest import Checksum


def part_path(folder: Place, part: int) -> Place:
    return folder / f"part-{part:06d}.parquet"


def write_part(folder: Place, part: int, patterns: pa.Table) -> Place:
    """Publish rows (schema PATTERN, in the plan's order) as one part; the same rows give the same bytes."""
    path, written = part_path(folder, part), list[Checksum]()
    columns = [name for name in PATTERN.names if name != "cube"]

    def write(aside: Path) -> None:
        pq.write_table(
            patterns.cast(PATTERN),
            aside,
            row_group_size=ROWS_PER_GROUP,
            use_dictionary=["split", "volume_id"],
            # Cells are compressed already.
            compression={**{_leaf(name): "zstd" for name in columns}, "cube": "none"},
            write_statistics=["rank", "coordinate", "scale", "reference", "split", "pattern_id", "label"],
        )
        written.append(checksum(aside))

    publish(path, write)
    write_json(_seal(path), asdict(written[0]))
    return path


def is_sealed(path: Place) -> bool:
    """Whether a part is there, as it was written."""
    written = read_seal(path)
    if written is None or not path.is_file():
        return False
    with on_disk(path) as local:
        return written == checksum(local)


def read_seal(path: Place) -> Checksum | None:
    """The checksum of a part as it was written; None where there is none, or the file holds something else."""
    seal = read_json(_seal(path))
    is_whole = seal is not None and seal.keys() == {field.name for field in fields(Checksum)}
    return Checksum(**seal) if seal is not None and is_whole else None


def _seal(path: Place) -> Place:
    """Where a part's checksum is kept beside it, so that one that was damaged is not taken for whole."""
    return path.with_suffix(".json")


def checksum(path: Path) -> Checksum:
    """What the manifest keeps of a part."""
    return Checksum(bytes=path.stat().st_size, xxh3=xxh3_of(path))


def _leaf(column: str) -> str:
    return f"{column}.list.element" if column.endswith(("_mm", "_voxels")) else column
