"""The archive's table of volumes and table of failures, and the split of its subjects."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygenesis.errors import WorkspaceError
from raygenesis.workspace import Place, read_table

CATALOGUE = pa.schema(
    [
        ("volume_id", pa.string()),  # hash of the source files' bytes; names the volume's folder
        ("subject_id", pa.string()),  # keyed hash, or the name itself with archive.keep_ids
        ("source", pa.string()),  # of the scan's path, likewise
        ("source_bytes", pa.int64()),
        ("modality", pa.string()),  # DICOM's code, empty where the files do not say
        ("shape", pa.list_(pa.int32())),  # z y x (2D: y x)
        ("num_channels", pa.int32()),
        ("spacing_mm", pa.list_(pa.float64())),  # z y x (2D: y x)
        ("affine", pa.list_(pa.float64())),  # 16 numbers, row by row: index (x, y, z, 1) to RAS+ mm
        ("dtype", pa.string()),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("low", pa.list_(pa.float64())),  # per channel: stored value at the 0.5 percentile
        ("high", pa.list_(pa.float64())),  # and at the 99.5
        ("levels", pa.list_(pa.list_(pa.int32()))),  # per pyramid level: scan voxels per voxel, z y x
        ("tags", pa.string()),  # JSON object of acquisition facts
        ("corrections", pa.list_(pa.string())),  # what was changed on the way into the archive
        ("voxel_fingerprint", pa.string()),  # hash of type, shape and voxels: finds duplicates
        ("stored_bytes", pa.int64()),
    ]
)

FAILURES = pa.schema([("source", pa.string()), ("reason", pa.string())])


def read_catalogue(
    path: Place, volume_ids: Iterable[str] | None = None, ndim: int | None = None
) -> list[dict[str, Any]]:
    """Catalogue rows, all or those of some ids or of some number of spatial dimensions, in order of volume id."""
    return read_columns(path, CATALOGUE.names, volume_ids, ndim).to_pylist()


def voxel_bytes(row: Mapping[str, Any]) -> int:
    """Bytes of the voxels of a volume, at its finest level and unpacked, from `shape`, `num_channels` and `dtype`."""
    return math.prod(row["shape"]) * row["num_channels"] * np.dtype(row["dtype"]).itemsize


def read_columns(
    path: Place, columns: Sequence[str], volume_ids: Iterable[str] | None = None, ndim: int | None = None
) -> pa.Table:
    """Some columns of the catalogue, as a table: what a million volumes need."""
    wanted = None if volume_ids is None else pc.field("volume_id").isin(pa.array(volume_ids, pa.string()))
    needed = list(dict.fromkeys([*columns, "volume_id", "shape"]))
    try:
        table = read_table(path, schema=CATALOGUE, filters=wanted, columns=needed)
    except FileNotFoundError:
        raise WorkspaceError(f"{path} is not there: run `raygenesis ingest` first") from None
    except (pa.ArrowInvalid, OSError):
        raise WorkspaceError(
            f"{path} is damaged: remove it and manifest.json beside it and ingest again; volumes of files that are "
            "still there are not decoded anew"
        ) from None
    table = table.sort_by("volume_id")
    if ndim is not None and table.num_rows:
        table = table.filter(pc.equal(pc.list_value_length(table["shape"]), ndim))
        if not table.num_rows:
            raise WorkspaceError(f"the archive has no {ndim}D scans, and discovery.cube_shape asks for {ndim}D")
    return table.select(list(columns))


def num_held_out(num_subjects: int, fraction: float) -> int:
    """How many of so many subjects are held out: at least one and never all."""
    return min(max(1, round(fraction * num_subjects)), num_subjects - 1)


def first_volumes(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The first volume id of each subject: it stands for the subject, whatever the subject is called."""
    first: dict[str, str] = {}
    for row in rows:
        subject, volume = row["subject_id"], row["volume_id"]
        first[subject] = min(volume, first.get(subject, volume))
    return first


def held_out_subjects(rows: Iterable[Mapping[str, Any]], fraction: float, seed: int) -> frozenset[str]:
    """The validation subjects among catalogue rows: the `fraction` whose hashes come first.

    Depends on the seed and on the content of the scans alone, not on what the subjects are called here: every stage,
    and every workspace of the same scans, holds out the same.
    """
    first = first_volumes(rows)
    ranked = sorted(first, key=lambda subject: hashlib.sha256(f"{seed}/{first[subject]}".encode()).digest())
    return frozenset(ranked[: num_held_out(len(ranked), fraction)])


def split_by_subject(
    rows: list[dict[str, Any]], fraction: float, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Catalogue rows of the training subjects and of the validation subjects."""
    held_out = held_out_subjects(rows, fraction, seed)
    training = [row for row in rows if row["subject_id"] not in held_out]
    return training, [row for row in rows if row["subject_id"] in held_out]
