"""Reading DICOM: the files of one series, in any order, become volumes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.tag import Tag

from raygenesis.archive.formats.dicom_file import (
    SPACINGS,
    TIME_ORDER,
    Slice,
    decode,
    first_value,
    floats,
    guarded,
    looks_like_dicom,
    read_dataset,
    read_frames,
    read_slices,
    tags_of,
)
from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.formats.slices import (
    MIN_SLICES,
    Plane,
    difference,
    fill,
    image_affine,
    lay_out,
    positions,
    stacks,
)
from raygenesis.archive.grid import Geometry, Grid, no_voxel_size
from raygenesis.archive.volume import MAX_BYTES, Volume, check_size
from raygenesis.errors import ScanError

T = TypeVar("T")
File = TypeVar("File")

# Each image is one of its own, without a place in the patient.
PROJECTIONS = {"CR", "DX", "DR", "MG", "RF", "XA", "PX", "IO"}

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ASIDE_CLASSES = {"1.2.840.10008.1.3.10": "a DICOMDIR", "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation"}
ASIDE_MODALITIES = {
    "SR": "a structured report", "KO": "a key object selection", "PR": "a presentation state", "DOC": "a document",
    "RTSTRUCT": "a radiotherapy structure set", "RTPLAN": "a radiotherapy plan", "RTDOSE": "a radiotherapy dose",
    "RTRECORD": "a radiotherapy record", "REG": "a registration", "SEG": "a segmentation", "AU": "a sound recording",
    "ECG": "a waveform", "HD": "a waveform", "EPS": "a waveform", "SM": "a whole-slide image",
}  # fmt: skip
ASIDE_IMAGE_TYPES = {"LOCALIZER": "a localiser", "MOSAIC": "a mosaic of slices in one image"}

HEADER_NAMES = (
    "SOPClassUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID", "Modality", "ImageType", "Rows",
    "BitsAllocated", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "ViewPosition",
)  # fmt: skip
HEADER_TAGS = [Tag(name) for name in HEADER_NAMES]


class Dicom(ScanFormat):
    """DICOM: files of any name, known by their first bytes; a scan is all files of a series (`read_header`)."""

    def recognises(self, head: bytes) -> bool:
        return looks_like_dicom(head)

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        return read_series(paths, fourth_axis, max_bytes)

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        return read_series_geometry(paths)


@dataclass(frozen=True)
class Header:
    """What groups files into scans.

    series: SeriesInstanceUID. patient: PatientID, with its issuer where there is one; empty without PatientID. aside:
    why the file is not a scan, else empty. is_projection: whether the file is an image of its own rather than a slice.
    """

    series: str
    patient: str
    aside: str
    is_projection: bool


def read_header(path: Path) -> Header:
    """What a file is and which series it belongs to, without its pixels. Raises ScanError if it is damaged."""
    dataset = read_dataset(path, HEADER_TAGS, pixels=False)
    with guarded("the header is damaged"):
        modality = str(first_value((dataset,), "Modality") or "")
        sop_class = str(first_value((dataset,), "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))
        aside = ASIDE_CLASSES.get(sop_class) or ASIDE_MODALITIES.get(modality, "")
        series = str(first_value((dataset,), "SeriesInstanceUID") or "")
        if not series and not aside:
            raise ScanError("the header is cut short or damaged: it names no series")
        patient, issuer = (str(first_value((dataset,), name) or "") for name in ("PatientID", "IssuerOfPatientID"))
        placed = all(first_value((dataset,), name) for name in ("ImagePositionPatient", "ImageOrientationPatient"))
        single = int(first_value((dataset,), "NumberOfFrames") or 1) == 1
        is_projection = modality in PROJECTIONS and single and not placed
        aside = aside or _aside(dataset, sop_class, placed, is_projection)
    if patient and issuer:
        patient = f"{patient}^^^{issuer}"
    return Header(series, patient, aside, is_projection)


def _aside(dataset: Dataset, sop_class: str, placed: bool, is_projection: bool) -> str:
    if any(first_value((dataset,), name) is None for name in ("Rows", "BitsAllocated")):
        return "it holds no image"
    # Collections store real radiographs as secondary captures too; those say how the patient was looked at.
    radiograph = is_projection and first_value((dataset,), "ViewPosition") is not None
    if (sop_class + ".").startswith(SECONDARY_CAPTURE + ".") and not placed and not radiograph:
        return "a secondary capture"
    image_type = first_value((dataset,), "ImageType") or ()
    words = [image_type] if isinstance(image_type, str) else list(image_type)
    return next((ASIDE_IMAGE_TYPES[word] for word in words if word in ASIDE_IMAGE_TYPES), "")


def read_series(paths: Sequence[Path], fourth_axis: FourthAxis = "refuse", max_bytes: int = MAX_BYTES) -> list[Volume]:
    """All files of one series, in any order, as volumes in canonical axes; projections and a lone slice as 2D images.

    `fourth_axis` says what becomes of time points and echoes, that is of different slices at one position: refused,
    a volume each, or channels of one volume. Raises ScanError saying why the series is not a volume, or that it claims
    more than `max_bytes` of voxels.
    """
    check_size(sum(path.stat().st_size for path in paths), max_bytes, "files")
    frames = _each_file(lambda path: read_frames(path, pixels=True), paths)
    check_size(sum(one.num_bytes for one in frames), max_bytes)
    slices = list(itertools.chain(*_each_file(decode, frames)))
    if _are_images(slices):
        return [_image(one) for one in slices]
    slices, notes = _without_copies(slices)
    (first, *others), left_out = _each_stack(slices, lambda stack: _volumes(stack, fourth_axis))
    return [replace(first, corrections=(*first.corrections, *notes, *left_out)), *others]


def read_series_geometry(paths: Sequence[Path]) -> list[Geometry]:
    """The geometry of a series' volumes, without its pixels.

    Time points and echoes count once.
    """
    slices = [one for path in paths for one in read_slices(path)]
    if _are_images(slices):
        return [_image_grid(one).geometry for one in slices]
    grids, _ = _each_stack(slices, lambda stack: [lay_out(_planes([place[0] for place in _places(stack)]))])
    return [Grid(grid.shape[::-1], grid.affine).geometry for grid in grids]


def _are_images(slices: Sequence[Slice]) -> bool:
    """Whether each slice is an image of its own. Raises ScanError for slices that are neither that nor placed."""
    lost = sum(one.plane is None for one in slices)
    with guarded("the header is damaged"):
        projections = all(one.plane is None and first_value(one.groups, "Modality") in PROJECTIONS for one in slices)
    if lost and len(slices) > 1 and not projections:
        raise ScanError(f"{lost} of {len(slices)} slices have no position and orientation")
    return len(slices) == 1 or projections


def _planes(slices: Sequence[Slice]) -> list[Plane]:
    """Where slices lie that are no images of their own: all of them have a place then."""
    return [one.plane for one in slices if one.plane is not None]


def _image_grid(one: Slice) -> Grid:
    """Where an image lies; without a place it is displayed: columns rise towards left, rows towards inferior."""
    plane, notes = one.plane, no_voxel_size(0, 2)
    if plane is None:
        with guarded("the header is damaged"):
            spacing = next(filter(None, (floats(one.groups, name, 2) for name in SPACINGS)), None)
        plane = Plane((0, 0, 0), (1, 0, 0, 0, 0, -1), spacing or (1.0, 1.0), one.shape)
        notes = () if spacing else no_voxel_size(2, 2)
    return Grid((*one.shape[::-1], 1), image_affine(plane), 2, notes=notes)


def _image(one: Slice) -> Volume:
    (pixels,), valid, words = _without_padding(
        [one.pixels.copy()], [one], one.rescale[0]
    )  # what files give is read-only
    grid = _image_grid(one)
    xyz = np.expand_dims(np.swapaxes(pixels, 0, 1), 2)
    inside = None if valid is None else valid[0].T[:, :, None]
    return _described(xyz, inside, replace(grid, corrections=words), [one], one.rescale)


def _without_padding(
    pixels: list[NDArray[Any]], slices: Sequence[Slice], slope: float
) -> tuple[list[NDArray[Any]], list[NDArray[np.bool_]] | None, tuple[str, ...]]:
    """Slices with the smallest real value of all in the place of padding, which pixels are valid, and words for that.

    Padding is of any value, and must not be mixed into what lies beside it.
    """
    if all(one.valid is None for one in slices):
        return pixels, None, ()
    valid = [np.ones(one.shape, bool) if one.valid is None else one.valid for one in slices]
    inside = [values[where] for values, where in zip(pixels, valid, strict=True) if where.any()]
    if not inside:
        raise ScanError("every pixel is padding: there is no image")
    smallest = min(map(np.min, inside)) if slope > 0 else max(map(np.max, inside))
    share = 1 - sum(map(np.count_nonzero, valid)) / sum(where.size for where in valid)
    filled = [np.where(where, values, smallest) for values, where in zip(pixels, valid, strict=True)]
    return (
        filled,
        valid,
        (f"pixel padding, {share:.1%} of the voxels, set to the smallest value and left out of limits",),
    )


def _each_file(read: Callable[[File], T], files: Sequence[File]) -> list[T]:
    """What `read` makes of each file; what is wrong with one is said of its place among its series' sorted names."""
    found = []
    for number, file in enumerate(files, 1):
        try:
            found.append(read(file))
        except ScanError as error:
            many = len(files)
            raise error if many == 1 else ScanError(f"file {number} of {many} in order of name: {error}") from None
    return found


def _without_copies(slices: Sequence[Slice]) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices but for those that come twice: under one SOPInstanceUID, in one place, with the same pixels."""
    kept: list[Slice] = []
    known: dict[object, list[Slice]] = {}
    for one in slices:
        copies = known.setdefault(one.identity if one.identity[0] else id(one), [])
        if not any(_same(one, other) for other in copies):
            copies.append(one)
            kept.append(one)
    return kept, _dropped(len(slices) - len(kept))


def _same(one: Slice, other: Slice) -> bool:
    return one.plane == other.plane and np.array_equal(one.pixels, other.pixels)


def _dropped(copies: int) -> tuple[str, ...]:
    return (f"{copies} duplicate slice{'s' * (copies > 1)} dropped",) if copies else ()


def _each_stack(slices: Sequence[Slice], read: Callable[[list[Slice]], list[T]]) -> tuple[list[T], list[str]]:
    """What `read` makes of a series' stacks, and which it left out. ScanError of the largest if it can make none."""
    planes = _planes(slices)
    found: list[T] = []
    left_out: list[tuple[list[int], str]] = []
    every = stacks(planes)
    main = None
    for stack in every:
        try:
            found += read([slices[index] for index in stack])
            main = main or planes[stack[0]]
        except ScanError as error:
            left_out.append((stack, str(error)))
    if main is None:
        if len(every) > 1 and len(every[0]) < MIN_SLICES:
            apart = {difference(planes[every[0][0]], planes[stack[0]]) for stack in every[1:]}
            kinds = f"{apart.pop()}s" if len(apart) == 1 else "orientations, matrix sizes and pixel spacings"
            raise ScanError(f"{len(slices)} slices in {len(every)} {kinds} are not a volume")
        raise ScanError(left_out[0][1])
    notes = []
    for stack, reason in left_out:
        why = f": {reason}" if len(stack) >= MIN_SLICES else ""
        many = f"{len(stack)} slice{'s' * (len(stack) > 1)}"
        notes.append(f"{many} of another {difference(main, planes[stack[0]])} left out{why}")
    return found, notes


def _places(stack: Sequence[Slice]) -> list[list[Slice]]:
    """One stack's slices by position along the normal. Raises ScanError if the positions are too few for a volume."""
    places = [[stack[index] for index in place] for place in positions(_planes(stack))]
    if len(places) < MIN_SLICES:
        at = f" at {len(places)} position{'s' * (len(places) > 1)}" if len(places) < len(stack) else ""
        raise ScanError(f"{len(stack)} slices{at} are not a volume: expected {MIN_SLICES} positions or more")
    return places


def _volumes(stack: Sequence[Slice], fourth_axis: FourthAxis) -> list[Volume]:
    """One stack as a volume, or a volume or channel for each of its time points and echoes."""
    places = _places(stack)
    distinct = [_distinct(place) for place in places]
    # Time points may be alike in places, beyond the patient say: those are no copies.
    if _uneven(places) or not _uneven(distinct):
        places = distinct
    notes = _dropped(len(stack) - sum(map(len, places)))
    fewest, most = min(map(len, places)), max(map(len, places))
    if most > 1 and fourth_axis == "refuse":
        many = f"{most}" if fewest == most else f"{fewest} to {most}"
        raise ScanError(
            f"{many} different slices lie at each of {len(places)} positions (time points or echoes): "
            "archive.fourth_axis=split makes a scan of each"
        )
    if fewest < most:
        raise ScanError(f"time points or echoes are incomplete: {fewest} to {most} slices lie at one position")
    if most > 1:
        places = [sorted(place, key=_time) for place in places]
    times = [list(time) for time in zip(*places, strict=True)]
    return [_volume(part, notes) for part in ([times] if fourth_axis == "channels" else [[time] for time in times])]


def _uneven(places: Sequence[Sequence[Slice]]) -> bool:
    return len(set(map(len, places))) > 1


def _distinct(place: Sequence[Slice]) -> list[Slice]:
    """Slices at one position but for copies of the same pixels."""
    kept: list[Slice] = []
    for one in place:
        if not any(one.rescale == other.rescale and np.array_equal(one.pixels, other.pixels) for other in kept):
            kept.append(one)
    return kept


def _time(one: Slice) -> tuple[float, ...]:
    with guarded("the header is damaged"):
        return (*(float(first_value(one.groups, *names) or 0) for names in TIME_ORDER), one.identity[1])


def _volume(channels: Sequence[Sequence[Slice]], notes: tuple[str, ...]) -> Volume:
    """One volume of one or several time points, each with a slice at every position."""
    slices = [one for channel in channels for one in channel]
    grid = lay_out(_planes(channels[0]))
    rescale = slices[0].rescale
    pixels = [one.pixels for one in slices]
    if len({one.ndim for one in pixels}) > 1 or (pixels[0].ndim > 2 and len(channels) > 1):
        raise ScanError("colour and grey slices, or colour and time points, cannot share one volume")
    if any(one.rescale != rescale for one in slices):
        rescale = (1.0, 0.0)
        pixels = [one.pixels.astype(np.float32) * one.rescale[0] + one.rescale[1] for one in slices]
        notes = (*notes, "rescaling that differs between slices was applied: voxels are real values")
    num = len(channels[0])
    pixels, valid, words = _without_padding(pixels, slices, rescale[0])
    starts = range(0, len(pixels), num)
    filled = [fill(grid, pixels[start : start + num]) for start in starts]
    inside = None
    if valid is not None or grid.moves is not None:  # where slices do not reach there is no image either
        wide = [where.astype(np.uint8) for where in valid or [np.ones(one.shape, bool) for one in slices]]
        inside = np.all([fill(grid, wide[start : start + num], 0) for start in starts], axis=0).swapaxes(0, 2)
    xyz = np.stack(filled).transpose(3, 2, 1, 0) if len(filled) > 1 else np.swapaxes(filled[0], 0, 2)
    corrections = (*grid.corrections, *notes, *words)
    return _described(xyz, inside, Grid(grid.shape[::-1], grid.affine, corrections=corrections), slices, rescale)


def _described(
    xyz: NDArray[Any], valid: NDArray[np.bool_] | None, grid: Grid, slices: Sequence[Slice],
    rescale: tuple[float, float],
) -> Volume:  # fmt: skip
    """A Volume from voxels [x, y, z] or [x, y, z, channels] and which are valid, with the tags of its first slice."""
    voxels, affine = grid.turned(xyz)
    tags, corrections = tags_of(slices[0].groups), (*grid.corrections, *slices[0].corrections)
    if slices[0].inverted:
        corrections += ("MONOCHROME1: grey values inverted",)
    return Volume(
        voxels,
        affine,
        *rescale,
        grid.ndim,
        tags.get("Modality", ""),
        tags,
        corrections,
        grid.notes,
        None if valid is None else grid.turned(valid)[0],
    )
