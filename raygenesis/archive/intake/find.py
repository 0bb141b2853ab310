"""The survey of a folder for ingest: DICOM headers that are known are not read again, many are read through Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from raygenesis.archive.formats.dicom import Header
from raygenesis.archive.intake.known_files import read_known_headers
from raygenesis.archive.intake.survey import ScanFile, Survey, read_headers, survey
from raygenesis.cluster import joining
from raygenesis.cluster.progress import progress
from raygenesis.workspace.workspace import Workspace

# Headers of so many files, or fewer, are read here; of more by Ray, in blocks of so many.
HEADERS_PER_BLOCK = 2000


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
    if len(files) <= HEADERS_PER_BLOCK:
        yield from read_headers(root, files)
        return
    joining.connect()
    blocks = [
        {"number": start, "files": [asdict(file) for file in files[start : start + HEADERS_PER_BLOCK]]}
        for start in range(0, len(files), HEADERS_PER_BLOCK)
    ]

    def read(block: dict[str, Any]) -> dict[str, Any]:
        headers = read_headers(root, [ScanFile(**file) for file in block["files"]])
        texts = [json.dumps(asdict(header) if isinstance(header, Header) else header) for header in headers]
        return {"number": block["number"], "headers": texts}

    texts: dict[int, list[str]] = {}
    with progress("ingest", len(files), "headers") as ticker:
        for row in ray.data.from_items(blocks, override_num_blocks=len(blocks)).map(read).iter_rows():
            texts[row["number"]] = list(row["headers"])
            ticker.advance(len(row["headers"]))
    for number in sorted(texts):
        for text in texts[number]:
            header = json.loads(text)
            yield header if isinstance(header, str) else Header(**header)
