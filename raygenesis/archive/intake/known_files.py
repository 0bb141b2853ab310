"""The workspace's `private/` tables: which file became which volume, and what DICOM headers said.

They let the next ingest pass by what it knows, and let the owner of the scans find a failure's file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raygenesis._version import __version__
from raygenesis.archive.formats.dicom import Header
from raygenesis.archive.intake.survey import File, Scan
from raygenesis.workspace.failures import FailureRow
from raygenesis.workspace.files import Place, read_table, write_table
from raygenesis.workspace.fingerprint import digest

SOURCES = pa.schema(
    [
        ("source", pa.string()),  # as the catalogue and the failures have it
        ("path", pa.string()),  # below the scans folder
        ("name", pa.string()),  # a DICOM series' own, which stays though it grows; else the path
        ("stamp", pa.string()),  # of its files' paths, sizes and modification times
        ("volume_ids", pa.list_(pa.string())),
        ("reason", pa.string()),  # why it is no volume
        ("is_lasting", pa.bool_()),  # whether reading it again would end the same
    ]
)

HEADERS = pa.schema(
    [
        ("path", pa.string()), ("num_bytes", pa.int64()), ("mtime_ns", pa.int64()),
        ("series", pa.string()), ("patient", pa.string()), ("aside", pa.string()), ("is_projection", pa.bool_()),
        ("version", pa.string()),  # of ours that looked: another may see more
    ]
)  # fmt: skip


# A source where a reason names one: what it is called with a key.
SOURCE = re.compile(r"\b[0-9a-f]{16}\b")


def stamp_of(scan: Scan) -> str:
    """Changes when a file of the scan does, or our version: what failed may then be readable."""
    return digest([__version__, [asdict(file) for file in scan.files]])


def read_sources(folder: Place) -> dict[str, dict[str, Any]]:
    """Rows of the table of sources by path; none where there is no table."""
    return {row["path"]: row for row in _rows(folder / "sources.parquet", SOURCES)}


def paths_of(folder: Place, failures: Iterable[FailureRow]) -> dict[str, str]:
    """Paths of the sources that failures name, in their reasons too, where the table knows them."""
    named = {name for failure in failures for name in (failure["source"], *SOURCE.findall(failure["reason"]))}
    if not named:
        return {}
    wanted = pc.field("source").isin(pa.array(named, pa.string()))
    paths: dict[str, str] = {}
    for row in _rows(folder / "sources.parquet", SOURCES, columns=["source", "path"], filters=wanted):
        paths.setdefault(row["source"], row["path"])
    return paths


def write_sources(folder: Place, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the table of sources."""
    ordered = sorted(rows, key=lambda row: row["path"])
    write_table(folder / "sources.parquet", pa.Table.from_pylist(ordered, SOURCES))


def read_known_headers(folder: Place) -> dict[File, Header]:
    """What headers said of DICOM files that an earlier ingest of this version of ours looked into."""
    return {
        File(row["path"], row["num_bytes"], row["mtime_ns"]): Header(
            row["series"], row["patient"], row["aside"], row["is_projection"]
        )
        for row in _rows(folder / "headers.parquet", HEADERS, filters=pc.field("version") == __version__)
    }


def write_headers(folder: Place, headers: Mapping[File, Header]) -> None:
    """Replace the table of headers."""
    rows = [asdict(file) | asdict(header) | {"version": __version__} for file, header in headers.items()]
    write_table(folder / "headers.parquet", pa.Table.from_pylist(rows, HEADERS))


def _rows(path: Place, schema: pa.Schema, **options: Any) -> list[dict[str, Any]]:
    try:
        return read_table(path, schema=schema, **options).to_pylist()
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return []  # it only spares work: without it everything is looked at again
