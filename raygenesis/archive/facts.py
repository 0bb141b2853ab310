"""What an archive holds, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_columns, voxel_bytes
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.failures import alike
from raygenesis.workspace.workspace import Workspace

COUNTED = ("shape", "num_channels", "spacing_mm", "dtype", "modality", "corrections", "notes", "stored_bytes")


@dataclass(frozen=True)
class Span:
    """The least, the median and the largest of some numbers."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class AxisFacts:
    """One axis of the volumes: sides in voxels, voxel size and extent in mm."""

    voxels: Span
    spacing_mm: Span
    extent_mm: Span


@dataclass(frozen=True)
class DimensionFacts:
    """The volumes with as many dimensions. axes: by name, z y x (2D: y x)."""

    num_volumes: int
    axes: Mapping[str, AxisFacts]


@dataclass(frozen=True)
class ArchiveFacts:
    """What `archive info` counts.

    dimensions: by number of dimensions, 3 and 2, those that there are. modalities, dtypes, num_channels: volumes by
    value, the most frequent first. corrections, notes: by kind, numbers in them left out.
    """

    num_volumes: int
    num_subjects: int
    num_failures: int
    source_bytes: int
    voxel_bytes: int
    stored_bytes: int
    dimensions: Mapping[int, DimensionFacts]
    modalities: Mapping[str, int]
    dtypes: Mapping[str, int]
    num_channels: Mapping[int, int]
    corrections: Mapping[str, int]
    notes: Mapping[str, int]


def archive_facts(workspace: Workspace) -> ArchiveFacts:
    """Count what an archive holds. Raises WorkspaceError without an archive."""
    manifest = ARCHIVE.require(workspace.archive)
    table = read_columns(workspace.catalog, COUNTED)
    of_dimensions = ((ndim, _of_dimensions(ndim, table)) for ndim in (3, 2))
    return ArchiveFacts(
        num_volumes=len(table), num_subjects=manifest.counts.subjects, num_failures=manifest.counts.failures,
        source_bytes=manifest.source_bytes, voxel_bytes=voxel_bytes(table),
        stored_bytes=pc.sum(table["stored_bytes"]).as_py() or 0,
        dimensions={ndim: facts for ndim, facts in of_dimensions if facts.num_volumes},
        modalities=_by_frequency(_counted(table["modality"])), dtypes=_by_frequency(_counted(table["dtype"])),
        num_channels=_by_frequency(_counted(table["num_channels"])),
        corrections=_by_frequency(_kinds(table["corrections"])), notes=_by_frequency(_kinds(table["notes"])),
    )  # fmt: skip


def _of_dimensions(ndim: int, table: pa.Table) -> DimensionFacts:
    members = table.filter(pc.equal(pc.list_value_length(table["shape"]), ndim))
    if not len(members):
        return DimensionFacts(0, {})
    sides, steps = (_sides(members[key]) for key in ("shape", "spacing_mm"))
    axes = {
        axis: AxisFacts(_span(sides[:, n]), _span(steps[:, n]), _span(sides[:, n] * steps[:, n]))
        for n, axis in enumerate("zyx"[-ndim:])
    }
    return DimensionFacts(len(members), axes)


def _sides(column: pa.ChunkedArray) -> NDArray[Any]:
    """Lists of one length each as an array [n, length]."""
    return pc.list_flatten(column).to_numpy().reshape(len(column), -1)


def _span(values: NDArray[Any]) -> Span:
    return Span(float(values.min()), float(np.median(values)), float(values.max()))


def _counted(column: pa.ChunkedArray) -> Counter[Any]:
    """How often each value comes, the first one first among equals."""
    return Counter({item["values"]: item["counts"] for item in column.value_counts().to_pylist()})


def _kinds(column: pa.ChunkedArray) -> Counter[str]:
    """How often each kind of text in lists comes."""
    kinds: Counter[str] = Counter()
    for text, count in _counted(pc.list_flatten(column)).items():
        kinds[alike(text)] += count
    return kinds


def _by_frequency(counts: Counter[Any]) -> dict[Any, int]:
    return dict(counts.most_common())
