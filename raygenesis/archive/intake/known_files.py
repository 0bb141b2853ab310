"""The workspace's `private/` tables: which file became which volume, and what DICOM headers said.

The next ingest passes by what they know, and the owner of the scans finds a failure's file in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from raygenesis._version import __version__
from raygenesis.archive.formats.dicom_header import Header
from raygenesis.archive.intake.survey import Scan, ScanFile
from raygenesis.cluster.progress import say
from raygenesis.errors import PassingError, WorkspaceError
from raygenesis.workspace.failures import FailureRow
from raygenesis.workspace.files import Place, publish, read_table, write_table
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.workspace import make_private

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
        ("stack", pa.string()), ("frame_of_reference", pa.string()), ("depth_mm", pa.float64()),
        ("version", pa.string()),  # of ours that looked: another may see more
    ]
)  # fmt: skip

SOURCES_TABLE, HEADERS_TABLE = "sources.parquet", "headers.parquet"

# Says which folder the archive was made from.
FOLDER_NOTE = "scans-folder"

# A source where a reason names one: what it is called with a key.
SOURCE = re.compile(r"\b[0-9a-f]{16}\b")


class KnownFile(TypedDict):
    """A row of the table of sources (`SOURCES`): a scan, or a file set aside, and what became of it."""

    source: str
    path: str
    name: str
    stamp: str
    volume_ids: list[str]
    reason: str
    is_lasting: bool


def stamp_of(scan: Scan) -> str:
    """A digest that changes when a file of the scan does, or our version: what failed may then be readable."""
    return digest([__version__, [asdict(file) for file in scan.files]])


def read_known_files(folder: Place) -> dict[str, KnownFile]:
    """Rows of the table of sources by path; none where there is no table. Raises WorkspaceError if it is damaged."""
    return {row["path"]: row for row in _rows(folder / SOURCES_TABLE, SOURCES)}


def paths_of(folder: Place, failures: Iterable[FailureRow]) -> dict[str, str]:
    """Paths of the sources that failures name, in their reasons too, where the table knows them.

    Raises WorkspaceError if the table is damaged.
    """
    named = {name for failure in failures for name in (failure["source"], *SOURCE.findall(failure["reason"]))}
    if not named:
        return {}
    wanted = pc.field("source").isin(pa.array(named, pa.string()))
    paths: dict[str, str] = {}
    for row in _rows(folder / SOURCES_TABLE, SOURCES, columns=["source", "path"], filters=wanted):
        paths.setdefault(row["source"], row["path"])
    return paths


def read_scans_folder(folder: Place) -> str | None:
    """The folder that the archive was made from; None if that is not known."""
    path = folder / FOLDER_NOTE
    return path.read_text() if path.is_file() else None


def write_private(folder: Place, scans: Path, files: Iterable[KnownFile], headers: Mapping[ScanFile, Header]) -> None:
    """Replace all that the next ingest is to know: the folder of scans, its files and their DICOM headers."""
    make_private(folder)
    write_known_files(folder, files)
    write_headers(folder, headers)
    publish(folder / FOLDER_NOTE, lambda aside: aside.write_text(str(scans.resolve())))


def write_known_files(folder: Place, files: Iterable[KnownFile]) -> None:
    """Replace the table of sources."""
    ordered = sorted(files, key=lambda file: file["path"])
    write_table(folder / SOURCES_TABLE, pa.Table.from_pylist(ordered, SOURCES))


def read_known_headers(folder: Place) -> dict[ScanFile, Header]:
    """What headers said of DICOM files that an earlier ingest of this version of ours looked into."""
    names = [field.name for field in fields(Header)]
    known = (pc.field("version") == __version__) & pc.field("stack").is_valid()
    try:
        rows = _rows(folder / HEADERS_TABLE, HEADERS, filters=known)
    except PassingError:
        raise
    except WorkspaceError:
        say("ingest", f"{folder / HEADERS_TABLE} is damaged: all headers are read again")
        rows = []
    return {
        ScanFile(row["path"], row["num_bytes"], row["mtime_ns"]): Header(*(row[name] for name in names)) for row in rows
    }


def write_headers(folder: Place, headers: Mapping[ScanFile, Header]) -> None:
    """Replace the table of headers."""
    rows = [asdict(file) | asdict(header) | {"version": __version__} for file, header in headers.items()]
    write_table(folder / HEADERS_TABLE, pa.Table.from_pylist(rows, HEADERS))


def _rows(path: Place, schema: pa.Schema, **options: Any) -> list[Any]:
    try:
        return read_table(path, schema=schema, **options).to_pylist() if path.is_file() else []
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        raise WorkspaceError(
            f"{path} is damaged: put back a copy of it, or remove it, and the next `raygenesis ingest` looks at every "
            "file again; of volumes whose files are gone nobody knows then which files these were"
        ) from None
