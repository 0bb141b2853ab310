"""The readers' outlines in a LIDC-IDRI document, the voxels inside them, and which of them are of one nodule.

A voxel is a number here: slice × 2³² + row × 2¹⁶ + column, slices numbered as `Reading.slices` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raygenesis.errors import PassingError, ScanError
from raygenesis.workspace.faults import patiently

# What a document may have: those that were published have 2 MB, some dozens of marks and far fewer voxels.
MAX_BYTES, MAX_MARKS, MAX_VOXELS = 2**25, 1000, 2**24

Voxels = NDArray[np.int64]


@dataclass(frozen=True)
class Outline:
    """One reader's nodule of 3 mm or more. number: of all marks in the document; voxels: inside, sorted."""

    reader: int
    number: int
    voxels: Voxels


@dataclass(frozen=True)
class Reading:
    """A document: the CT series it is about, its slices (SOP instance UID, z in mm), and the outlines."""

    series: str
    slices: tuple[tuple[str, float], ...]
    outlines: tuple[Outline, ...]


def read_reading(path: Path, matrix_of: Callable[[str], tuple[int, int] | None]) -> Reading:
    """Read the readers' document of a CT; without outlines where the series is not known.

    matrix_of: returns the rows and columns of a series, by its UID; None where it is not known. Raises ScanError if the
    document is damaged or of another kind, or an outline leaves the matrix.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ScanError(f"not the readers' document of a CT (it has more than {MAX_BYTES:,} bytes)")
        root = patiently(lambda: ElementTree.parse(path), path.name).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        if isinstance(error, ScanError | PassingError):
            raise
        raise ScanError(f"not readable as XML ({error})") from None
    series = root.findtext(".//{*}SeriesInstanceUid", "").strip()
    if root.tag.rpartition("}")[2] != "LidcReadMessage" or not series:
        raise ScanError("not the readers' document of a CT (a LidcReadMessage that names a series)")
    matrix = matrix_of(series)
    if matrix is None:
        return Reading(series, (), ())
    try:
        marks = [
            (reader, nodule)
            for reader, session in enumerate(root.findall("{*}readingSession"))
            for nodule in session.findall("{*}unblindedReadNodule")
        ]
        if len(marks) > MAX_MARKS:
            raise ScanError(f"not the readers' document of a CT (it has {len(marks):,} marks)")
        slices = _slices([roi for _, nodule in marks for roi in nodule.findall("{*}roi")])
        numbers = {key: number for number, key in enumerate(slices)}
        outlines, left = [], MAX_VOXELS
        for number, (reader, nodule) in enumerate(marks):
            if any(len(roi.findall("{*}edgeMap")) > 1 for roi in nodule.findall("{*}roi")):  # a point is below 3 mm
                outlines.append(Outline(reader, number, _voxels(nodule, numbers, matrix, left)))
                left -= outlines[-1].voxels.size
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError("an outline lacks its place, or holds what is no number") from None
    return Reading(series, tuple(slices.values()), tuple(outlines))


def same_nodule(outlines: Sequence[Outline]) -> list[list[Outline]]:
    """Outlines that share a voxel, directly or through others, are of one nodule; in order of the document."""
    groups: list[list[Outline]] = []
    for outline in outlines:
        touching = [group for group in groups if any(_overlap(outline, other) for other in group)]
        groups = [group for group in groups if not any(group is other for other in touching)]
        groups.append([*(one for group in touching for one in group), outline])
    return sorted((sorted(group, key=lambda one: one.number) for group in groups), key=lambda group: group[0].number)


def consensus(outlines: Sequence[Outline]) -> Voxels:
    """Voxels that at least half of the readers who outlined the nodule have inside, sorted."""
    readers = sorted({outline.reader for outline in outlines})
    inside = [np.unique(np.concatenate([one.voxels for one in outlines if one.reader == reader])) for reader in readers]
    voxels, votes = np.unique(np.concatenate(inside), return_counts=True)
    return voxels[2 * votes >= len(readers)]


def places(voxels: Voxels) -> NDArray[np.int64]:
    """Slice, row and column of each voxel [n, 3]."""
    return np.stack([voxels >> 32, voxels >> 16 & 0xFFFF, voxels & 0xFFFF], 1)


def inside(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Column and row [n, 2] of the pixels inside an outline, whose points [n, 2] are the first outside."""
    low = points.min(0)
    width, height = (points.max(0) - low + 1).tolist()
    corners = [tuple(point) for point in (points - low).tolist()]
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    if len(corners) > 2:
        draw.polygon(corners, fill=1)
    # Points that follow each other are neighbours, so the line through them is the outline itself.
    draw.line([*corners, corners[0]], fill=0)
    rows, columns = np.nonzero(np.asarray(canvas))
    return np.stack([columns, rows], 1) + low


def _overlap(one: Outline, other: Outline) -> bool:
    return np.intersect1d(one.voxels, other.voxels, assume_unique=True).size > 0


def _slices(rois: Sequence[ElementTree.Element]) -> dict[str, tuple[str, float]]:
    """UID and z in mm of each slice that is outlined, by `_key`, in order of z."""
    found: dict[str, tuple[str, float]] = {}
    for roi in rois:
        z = float(roi.findtext("{*}imageZposition", ""))
        if not np.isfinite(z):
            raise ValueError
        found.setdefault(_key(roi), (roi.findtext("{*}imageSOP_UID", "").strip(), z))
    return dict(sorted(found.items(), key=lambda item: item[1][1]))


def _key(roi: ElementTree.Element) -> str:
    """The key of an outline's slice: its UID, or its place where it has none."""
    return roi.findtext("{*}imageSOP_UID", "").strip() or str(float(roi.findtext("{*}imageZposition", "")))


def _voxels(nodule: ElementTree.Element, numbers: dict[str, int], matrix: tuple[int, int], most: int) -> Voxels:
    """A nodule's voxels: inside its outlines, without those inside the outlines of holes.

    Raises ScanError where an outline leaves the matrix (rows, columns), or more than `most` voxels are outlined.
    """
    none = np.zeros(0, np.int64)
    filled: dict[bool, list[Voxels]] = {True: [none], False: [none]}
    for roi in nodule.findall("{*}roi"):
        edges = roi.findall("{*}edgeMap")
        points = np.array([[int(edge.findtext(name, "")) for name in ("{*}xCoord", "{*}yCoord")] for edge in edges])
        if not points.size:
            raise ValueError
        if points.min() < 0 or (points.max(0) >= matrix[::-1]).any():
            raise ScanError(f"an outline leaves the {matrix[0]}×{matrix[1]} pixels of its series")
        columns, rows = inside(points).T
        most -= len(rows)
        if most < 0:
            raise ScanError(f"not the readers' document of a CT (it outlines more than {MAX_VOXELS:,} voxels)")
        is_hole = roi.findtext("{*}inclusion", "").strip().upper() == "FALSE"
        filled[not is_hole].append((numbers[_key(roi)] << 32) + (rows << 16) + columns)
    return np.setdiff1d(np.concatenate(filled[True]), np.concatenate(filled[False]))
