"""What a folder of scans holds, before anything of it is taken in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from raygenesis.archive.formats.dicom import Header
from raygenesis.archive.intake.known_files import read_known_headers
from raygenesis.archive.intake.survey import File, Survey, read_headers, survey
from raygenesis.cluster import joining
from raygenesis.cluster.progress import progress
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.workspace import Workspace

# DICOM headers are read here, or where there are more, by Ray.
HEADERS_PER_BLOCK = 2000


@dataclass(frozen=True)
class Found:
    """A folder's scans, and what their DICOM headers said."""

    survey: Survey
    headers: Mapping[File, Header]

    @property
    def listing(self) -> str:
        """Identity of the folder's scans: their paths, sizes and modification times."""
        return digest([[asdict(file) for scan in self.survey.scans for file in scan.files],
                       [file.source for file in self.survey.aside]])  # fmt: skip


def find(scans: Path, workspace: Workspace) -> Found:
    """Every scan below a folder. DICOM headers that an earlier ingest looked into are not read again."""
    known = read_known_headers(workspace.private)
    headers: dict[File, Header] = {}

    def read(root: Path, files: Sequence[File]) -> Iterator[Header | str]:
        unknown = [file for file in files if file not in known]
        fresh = iter(_read_headers(root, unknown))
        for file in files:
            header = known[file] if file in known else next(fresh)
            if isinstance(header, Header):
                headers[file] = header
            yield header

    return Found(survey(scans, read), headers)


def _read_headers(root: Path, files: Sequence[File]) -> Iterator[Header | str]:
    if len(files) <= HEADERS_PER_BLOCK:
        yield from read_headers(root, files)
        return
    joining.connect()
    blocks = [
        {"number": start, "files": [asdict(file) for file in files[start : start + HEADERS_PER_BLOCK]]}
        for start in range(0, len(files), HEADERS_PER_BLOCK)
    ]

    def read(block: dict[str, Any]) -> dict[str, Any]:
        found = read_headers(root, [File(**file) for file in block["files"]])
        texts = [json.dumps(asdict(header) if isinstance(header, Header) else header) for header in found]
        return {"number": block["number"], "headers": texts}

    done: dict[int, list[str]] = {}
    with progress("ingest", len(files), "headers") as ticker:
        for row in ray.data.from_items(blocks, override_num_blocks=len(blocks)).map(read).iter_rows():
            done[row["number"]] = list(row["headers"])
            ticker.advance(len(row["headers"]))
    for number in sorted(done):
        for text in done[number]:
            header = json.loads(text)
            yield header if isinstance(header, str) else Header(**header)
