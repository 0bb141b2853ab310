"""The survey of a folder for ingest: DICOM headers that are known are not read again, others are read in tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from raygenesis.archive.formats.dicom_header import Header
from raygenesis.archive.intake.known_files import read_known_headers
from raygenesis.archive.intake.survey import ScanFile, Survey, read_headers, survey
from raygenesis.cluster import fan_out
from raygenesis.cluster.progress import progress
from raygenesis.workspace.workspace import Workspace

# Headers are read in tasks, so many in each: this process parses nothing that a stranger wrote.
HEADERS_PER_TASK = 2000


def find(scans: Path, workspace: Workspace) -> Survey:
    """Every scan below a folder. DICOM headers that an earlier ingest has read are not read again.

    Raises ScanError if the folder is missing or holds none.
    """
    known = read_known_headers(workspace.private)

    def read(root: Path, files: Sequence[ScanFile]) -> Iterator[Header | str]:
        unknown = iter(_read_headers(root, [file for file in files if file not in known]))
        for file in files:
            yield known[file] if file in known else next(unknown)

    return survey(scans, read)


def _read_headers(root: Path, files: Sequence[ScanFile]) -> Iterator[Header | str]:
    if not files:
        return
    blocks = [files[start : start + HEADERS_PER_TASK] for start in range(0, len(files), HEADERS_PER_TASK)]
    headers: dict[int, list[Header | str]] = {}
    with progress("ingest", len(files), "headers") as ticker:
        for number, found in fan_out.each(_read_block, enumerate(blocks), root):
            headers[number] = found
            ticker.advance(len(found))
    for number in range(len(blocks)):
        yield from headers[number]


def _read_block(block: tuple[int, Sequence[ScanFile]], root: Path) -> tuple[int, list[Header | str]]:
    number, files = block
    return number, list(read_headers(root, files))
