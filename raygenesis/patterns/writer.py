"""Writing one part of the pattern store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygenesis.errors import PassingError, WorkspaceError
from raygenesis.patterns.schema import PATTERN, ROWS_PER_GROUP, VALIDATION
from raygenesis.workspace.faults import patiently
from raygenesis.workspace.files import Place, on_disk, publish, write_json, xxh3_of
from raygenesis.workspace.manifest import Checksum
from raygenesis.workspace.records import adapter, read_record


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What is kept beside a part: its number, its checksum, and what it holds.

    patterns: how many there are, of which `validation` are held out, from `volumes` scans. failures: what of the part's
    plan left no patterns, as pairs of source and reason.
    """

    part: int
    patterns: int
    validation: int
    volumes: int
    checksum: Checksum
    failures: tuple[tuple[str, str], ...]


def part_path(folder: Place, part: int) -> Place:
    return folder / f"part-{part:06d}.parquet"


def write_part(folder: Place, part: int, patterns: pa.Table, failures: Sequence[tuple[str, str]] = ()) -> PartRecord:
    """Publish rows (schema PATTERN, in the plan's order) as one part, then its record, which is returned.

    The same rows give the same bytes.
    """
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
    record = PartRecord(
        part=part, patterns=patterns.num_rows, validation=patterns["split"].to_pylist().count(VALIDATION),
        volumes=pc.count_distinct(patterns["volume_id"]).as_py(), checksum=written[0], failures=tuple(failures),
    )  # fmt: skip
    write_json(_record_path(path), adapter(PartRecord).dump_python(record, mode="json"))
    return record


def read_part_record(path: Place) -> PartRecord | None:
    """The record beside a part, which may itself be damaged; None where there is none, or something else."""
    try:
        return read_record(_record_path(path), PartRecord)
    except PassingError:
        raise
    except WorkspaceError:
        return None


def read_whole_part(path: Place) -> PartRecord | None:
    """The record of a part that is there as it was written; None where it is missing, damaged or half-written."""
    record = read_part_record(path)
    if record is None or not path.is_file():
        return None
    with on_disk(path) as local:
        return record if record.checksum == patiently(partial(checksum, local), path) else None


def _record_path(path: Place) -> Place:
    """Where a part's record is, so that a part which was damaged is not taken for whole."""
    return path.with_suffix(".json")


def checksum(path: Path) -> Checksum:
    """What the manifest keeps of a part."""
    return Checksum(bytes=path.stat().st_size, xxh3=xxh3_of(path))


def _leaf(column: str) -> str:
    return f"{column}.list.element" if column.endswith(("_mm", "_voxels")) else column
