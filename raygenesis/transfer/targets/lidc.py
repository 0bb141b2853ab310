"""LIDC-IDRI: folders of DICOM series and the readers' XML documents, anywhere below one folder: nodules in CT."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.formats.dicom_file import read_slices
from raygenesis.archive.formats.dicom_header import read_header
from raygenesis.archive.formats.slices import Plane
from raygenesis.archive.grid import LPS_TO_RAS
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from raygenesis.text.names import MAX_NAME, printable
from raygenesis.transfer.examples import SEGMENTATION, Example, ImageFile, Problem, Region, Target
from raygenesis.transfer.targets.lidc_outlines import Reading, consensus, places, read_reading, same_nodule
from raygenesis.transfer.targets.listing import SAFE, files_below, require_examples
from raygenesis.workspace.faults import lasting_reason, patiently

# A slice may lie beside the place in the document by so much.
MAX_DIFFERENCE_MM = 0.5
# Least cosine between an axial slice's normal and the patient's axis.
MIN_AXIAL = 0.7


@dataclass(frozen=True)
class NoduleMap:
    """The voxels that at least half of the readers who outlined a nodule have inside their outlines.

    xml: their document. marks: the numbers of their outlines among all marks in it. slices: the series' files.
    """

    xml: Path
    marks: tuple[int, ...]
    slices: tuple[Path, ...]

    def read(self, image: Volume) -> NDArray[np.uint8]:
        planes = _planes(self.slices)
        shapes = np.array([plane.shape for plane in planes.values()])
        rows, columns = shapes.max(0).tolist()
        reading = read_reading(self.xml, lambda series: (rows, columns))
        voxels = consensus([one for one in reading.outlines if one.number in self.marks])
        to_index: NDArray[Any] = np.linalg.inv(image.affine)
        depths = {uid: _index(to_index, plane, 0, 0)[2] for uid, plane in planes.items()}
        # Where slices are missing the image's lie between the scanner's: each has the outlines of the nearest.
        apart = np.abs(np.arange(image.shape[0])[:, None] - np.array([*depths.values()]))
        label = np.zeros(image.shape, np.uint8)
        for number in np.unique(voxels >> 32).tolist():
            named, z_mm = reading.slices[number]
            uid = _found(planes, named, z_mm, self.xml)
            _, down, across = places(voxels[voxels >> 32 == number]).T
            x, y, _ = np.rint(_index(to_index, planes[uid], down, across)).astype(int)
            if min(x.min(), y.min()) < 0 or x.max() >= image.shape[2] or y.max() >= image.shape[1]:
                raise ScanError(f"{self.xml}: an outline at z = {z_mm:g} mm leaves its image")
            nearest = np.abs(np.arange(image.shape[0]) - depths[uid]) <= apart.min(1) + 1e-3
            for layer in np.flatnonzero(nearest):
                label[layer, y, x] = 1
        return label


@dataclass(frozen=True)
class Series:
    """A CT series: its files, the patient, and where one of its slices lies."""

    files: tuple[Path, ...]
    patient: str
    plane: Plane


def read(folder: Path, *, extent_mm: tuple[float, float, float] = (40.0, 45.0, 45.0), min_readers: int = 1) -> Target:
    """Nodules of 3 mm or more as regions of `extent_mm` (z y x) round them; no official split. Raises ScanError.

    Outlines of the readers that overlap are of one nodule, which is left out if fewer than `min_readers` of the four
    outlined it. Its voxels are those that at least half of the readers who outlined it have inside.
    """
    scans, problems = _scans(folder)
    examples: list[Example] = []
    documents: dict[str, Path] = {}
    for path in files_below(folder, ".xml"):
        source = path.relative_to(folder).as_posix()
        try:
            reading = read_reading(path, lambda series: scans[series].plane.shape if series in scans else None)
        except ScanError as error:
            problems.append(Problem(source, str(error)))
            continue
        if reading.series not in scans:
            problems.append(
                Problem(source, f"series {printable(reading.series, MAX_NAME)}, which it is about, is not there")
            )
        elif reading.series in documents:
            problems.append(Problem(source, f"{documents[reading.series]} is about the same series"))
        else:
            documents[reading.series] = path.relative_to(folder)
            for one in _nodules(path, reading, scans[reading.series], extent_mm, min_readers):
                if isinstance(one, Example):
                    examples.append(one)
                else:
                    problems.append(one)
    alone = [scan for series, scan in scans.items() if series not in documents]
    problems += [Problem(_source(folder, scan.files[0]), "no readers' document is about it") for scan in alone]
    window = (-1000.0, 1000.0)
    return require_examples(folder, Target(SEGMENTATION, 3, ("nodule",), tuple(examples), tuple(problems), window))


def _scans(folder: Path) -> tuple[dict[str, Series], list[Problem]]:
    """CT series by UID. As published each has a folder of its own, so that one header of a folder suffices."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files_below(folder, ".dcm"):
        folders[path.parent].append(path)
    scans: dict[str, Series] = {}
    problems = []
    for files in folders.values():
        try:
            header = patiently(partial(read_header, files[0]), folder)
            plane = patiently(partial(read_slices, files[0]), folder)[0].plane
            reason = header.aside or ("a film and no CT" if header.is_projection else "")
            if not reason and (plane is None or abs(plane.axes[2, 2]) < MIN_AXIAL):
                reason = "its slices are not axial, or have no place"
            if not (reason or SAFE.fullmatch(header.patient)):
                reason = "its patient id is empty, or has other characters than letters, digits, '.', '_' and '-'"
            if not (reason or SAFE.fullmatch(header.series)):
                reason = "its series has other characters than letters, digits, '.', '_' and '-'"
            if not reason and header.series in scans:
                reason = f"its series lies in {_source(folder, scans[header.series].files[0])} too"
        except (ScanError, OSError) as error:
            reason = lasting_reason(error, folder)
        if reason:
            problems.append(Problem(_source(folder, files[0]), reason))
        elif plane is not None:
            scans[header.series] = Series(tuple(files), header.patient, plane)
    return scans, problems


def _source(folder: Path, path: Path) -> str:
    return path.parent.relative_to(folder).as_posix()


def _nodules(
    path: Path, reading: Reading, scan: Series, extent_mm: tuple[float, float, float], min_readers: int
) -> Iterator[Example | Problem]:
    """An example for each nodule of a scan, and a problem for each outline of nothing, or if there is none."""
    scan_name = f"{scan.patient}/{reading.series}"
    for one in reading.outlines:
        if not one.voxels.size:
            yield Problem(f"{scan_name}/mark-{one.number}", "a reader's outline that encloses no voxel")
    nodules = same_nodule([one for one in reading.outlines if one.voxels.size])
    if not nodules:
        yield Problem(scan_name, "no reader outlined a nodule of 3 mm or more")
    for number, outlines in enumerate(nodules, 1):
        name = f"{scan_name}/nodule-{number}"
        voxels = consensus(outlines)
        if len({one.reader for one in outlines}) < min_readers:
            continue
        if not voxels.size:
            yield Problem(name, "no voxel that half of its readers have inside")
            continue
        ends = np.stack([places(voxels).min(0), places(voxels).max(0)])
        z_mm = float(np.mean([reading.slices[end][1] for end in ends[:, 0]]))
        x_mm, y_mm, _ = _ras(scan.plane, *ends[:, 1:].mean(0)).tolist()
        label = NoduleMap(path, tuple(one.number for one in outlines), scan.files)
        region = Region((x_mm, y_mm, z_mm), extent_mm)
        yield Example(name, scan.patient, ImageFile(scan.files), label, region=region)


def _planes(files: tuple[Path, ...]) -> dict[str, Plane]:
    """Where each slice lies, by its SOP instance UID."""
    slices = [one for path in files for one in read_slices(path)]
    return {one.identity[0]: one.plane for one in slices if one.plane is not None}


def _found(planes: dict[str, Plane], uid: str, z_mm: float, xml: Path) -> str:
    """UID of the slice that a document names, by its UID or else by its place. Raises ScanError."""
    if uid not in planes:
        uid = min(planes, key=lambda other: abs(planes[other].position[2] - z_mm))
    if abs(planes[uid].position[2] - z_mm) > MAX_DIFFERENCE_MM:
        raise ScanError(f"{xml} outlines a nodule at z = {z_mm:g} mm, where its series has no such slice")
    return uid


def _ras(plane: Plane, rows: NDArray[np.int64] | float, columns: NDArray[np.int64] | float) -> NDArray[np.float64]:
    """RAS+ mm [3] or [3, n] of a slice's pixels."""
    across, down, _ = plane.axes
    moved = np.multiply.outer(across * plane.spacing[1], columns) + np.multiply.outer(down * plane.spacing[0], rows)
    return LPS_TO_RAS @ (np.reshape(plane.position, (3, *[1] * np.ndim(rows))) + moved)


def _index(
    to_index: NDArray[np.float64], plane: Plane, rows: NDArray[np.int64] | float, columns: NDArray[np.int64] | float
) -> NDArray[np.float64]:
    """Where a slice's pixels lie among an image's voxels, x y z [3] or [3, n]."""
    ras = _ras(plane, rows, columns)
    return to_index[:3, :3] @ ras + to_index[:3, 3].reshape(3, *[1] * np.ndim(rows))
