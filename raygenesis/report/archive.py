"""The sections of the archive: what it holds, a contact sheet, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_catalogue, read_columns
from raygenesis.report import galleries
from raygenesis.report.parts import ScanPictures
from raygenesis.settings import IntensitySettings
from raygenesis.text.tables import Rows
from raygenesis.workspace.failures import alike, every_failure, grouped
from raygenesis.workspace.workspace import Workspace

MOST_FAILURES, MOST_SCANS = 50, 16
FACTS = {"modality": "modality", "dtype": "stored as", "num_channels": "channels"}  # columns, and what the page says

KINDS = ("corrections", "notes")  # columns of sentences


@dataclass(frozen=True)
class ArchiveSection:
    """facts, ranges: rows of tables. corrections, notes: how often each comes. sheet: of some scans, evenly."""

    num_volumes: int
    num_subjects: int
    facts: Rows
    corrections: str
    notes: str
    ranges: Rows
    sheet: ScanPictures


def archive_section(workspace: Workspace, intensity: IntensitySettings) -> ArchiveSection:
    """Counts, modalities, corrections, notes, ranges of shape and spacing, and a contact sheet."""
    table = read_columns(workspace.catalog, ["volume_id", "subject_id", "shape", "spacing_mm", *KINDS, *FACTS])
    ranges = []
    for ndim in (3, 2):
        members = table.filter(pc.equal(pc.list_value_length(table["shape"]), ndim))
        shapes, spacings = (np.array(members[name].to_pylist(), float) for name in ("shape", "spacing_mm"))
        for axis, voxels, step in zip("zyx"[-ndim:], shapes.T, spacings.T, strict=True) if len(members) else ():
            sizes = {"voxels": _range(voxels), "spacing in mm": _range(step), "size in mm": _range(voxels * step)}
            ranges.append({"axis": f"{axis} ({ndim}D)", **sizes})
    chosen = read_catalogue(workspace.catalog, galleries.evenly(table["volume_id"].to_pylist(), MOST_SCANS))
    corrections, notes = (_tally(map(alike, pc.list_flatten(table[key]).to_pylist())) for key in KINDS)
    return ArchiveSection(
        num_volumes=table.num_rows,
        num_subjects=pc.count_distinct(table["subject_id"]).as_py(),
        facts=[{"fact": title, "volumes": _tally(table[key].to_pylist())} for key, title in FACTS.items()],
        corrections=corrections,
        notes=notes,
        ranges=ranges,
        sheet=galleries.contact_sheet(workspace.volumes, chosen, intensity),
    )


def _tally(values: Iterable[Any]) -> str:
    return ", ".join(f"{value or 'not said'} ({count:,})" for value, count in Counter(values).most_common())


def _range(values: NDArray[np.float64]) -> str:
    least, median, most = values.min(), np.median(values), values.max()
    return f"{least:.4g} to {most:.4g}, median {median:.4g}" if most > least else f"{least:.4g}"


@dataclass(frozen=True)
class FailuresSection:
    """rows: of the table, a reason each. num_scans: that failed. num_reasons_left_out: more than the table shows."""

    rows: Rows
    num_scans: int
    num_reasons_left_out: int


def failures_section(workspace: Workspace) -> FailuresSection:
    """Failures of all stages, those of one cause together, most frequent first."""
    found = [(stage, *group) for stage, rows in every_failure(workspace).items() for group in grouped(rows)]
    found.sort(key=lambda group: -len(group[2]))
    rows = [
        {"stage": stage, "scans": len(sources), "reason": reason, "for example": ", ".join(sources[:3])}
        for stage, reason, sources in found[:MOST_FAILURES]
    ]
    return FailuresSection(rows, sum(len(sources) for _, _, sources in found), len(found) - len(rows))
