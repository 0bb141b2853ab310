"""The archive's table of volumes and table of failures, and the split of its subjects."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raygenesis.errors import WorkspaceError

CATALOGUE = pa.schema(
    [
        ("volume_id", pa.string()),  # hash of the source file's bytes; names the volume's folder
        ("subject_id", pa.string()),
        ("source", pa.string()),  # path below the scans folder
        ("source_bytes", pa.int64()),
        ("source_mtime_ns", pa.int64()),
        ("shape", pa.list_(pa.int32())),  # z y x (2D: y x)
        ("spacing_mm", pa.list_(pa.float64())),  # z y x (2D: y x)
        ("affine", pa.list_(pa.float64())),  # 16 numbers, row by row: index (x, y, z, 1) to RAS+ mm
        ("dtype", pa.string()),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("low", pa.float64()),  # stored value at the 0.5 percentile
        ("high", pa.float64()),  # and at the 99.5
        ("levels", pa.list_(pa.list_(pa.int32()))),  # per pyramid level: scan voxels per voxel, z y x
        ("voxel_fingerprint", pa.string()),  # hash of type, shape and voxels: finds duplicates
        ("stored_bytes", pa.int64()),
    ]
)

FAILURES = pa.schema([("source", pa.string()), ("reason", pa.string())])

BIDS_SUBJECT = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")


def subject_of(source: str, pattern: str | None) -> str:
    """The subject of a scan from its path: the pattern's group, else BIDS' `sub-…`, else the path itself."""
    found = re.search(pattern, source) if pattern else BIDS_SUBJECT.search(source)
    subject = found and found.group(min(found.re.groups, 1))
    return subject or re.sub(r"\.nii(\.gz)?$", "", source, flags=re.IGNORECASE)


def read_catalogue(path: Path, volume_ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Catalogue rows, all or those of some ids, in order of volume id."""
    wanted = None if volume_ids is None else pc.field("volume_id").isin(pa.array(volume_ids, pa.string()))
    try:
        table = pq.read_table(path, schema=CATALOGUE, filters=wanted)
    except FileNotFoundError:
        raise WorkspaceError(f"{path} is not there: run `raygenesis ingest` first") from None
    except (pa.ArrowInvalid, OSError):
        raise WorkspaceError(
            f"{path} is damaged: remove it and manifest.json beside it and ingest again, stored volumes are kept"
        ) from None
    return table.sort_by("volume_id").to_pylist()


def held_out_subjects(subject_ids: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """The validation subjects: the `fraction` whose hashes come first, at least one and never all.

    Depends on the set of subjects and the seed alone, so every stage holds out the same.
    """
    ranked = sorted(set(subject_ids), key=lambda subject: hashlib.sha256(f"{seed}/{subject}".encode()).digest())
    count = min(max(1, round(fraction * len(ranked))), len(ranked) - 1)
    return frozenset(ranked[:count])


def split_by_subject(
    rows: list[dict[str, Any]], fraction: float, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Catalogue rows of the training subjects and of the validation subjects."""
    held_out = held_out_subjects((row["subject_id"] for row in rows), fraction, seed)
    training = [row for row in rows if row["subject_id"] not in held_out]
    return training, [row for row in rows if row["subject_id"] in held_out]
