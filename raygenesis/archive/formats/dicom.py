"""Reading DICOM: the files of one series, in any order, become volumes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.formats.dicom_elements import first_value, floats, guarded
from raygenesis.archive.formats.dicom_file import (
    SPACINGS,
    Slice,
    decode,
    looks_like_dicom,
    read_frames,
    read_slices,
)
from raygenesis.archive.formats.dicom_header import PROJECTIONS
from raygenesis.archive.formats.dicom_tags import tags_of
from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.formats.slices import (
    MIN_SLICES,
    Plane,
    SliceGrid,
    Uneven,
    fill,
    image_affine,
    lay_out,
    of_one_type,
)
from raygenesis.archive.formats.stack import Stack, in_order_of_time, places_of, planes_of, stacks_of, unlike
from raygenesis.archive.grid import Geometry, Grid, no_voxel_size
from raygenesis.archive.volume import MAX_BYTES, LargeScanError, Volume, check_size
from raygenesis.errors import ScanError

T = TypeVar("T")
File = TypeVar("File")


@dataclass(frozen=True)
class Dicom(ScanFormat):
    """DICOM: files of any name, known by their first bytes; a scan is all files of a series (`read_header`).

    uneven: what becomes of slices that lie too unevenly (`archive.uneven`).
    """

    uneven: Uneven = None

    def recognises(self, head: bytes) -> bool:
        return looks_like_dicom(head)

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        return read_series(paths, fourth_axis, max_bytes, self.uneven)

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        return read_series_geometry(paths, self.uneven)


def read_series(
    paths: Sequence[Path], fourth_axis: FourthAxis = "refuse", max_bytes: int = MAX_BYTES, uneven: Uneven = None
) -> list[Volume]:
    """All files of one series, in any order, as volumes in canonical axes; projections and a lone slice as 2D images.

    `fourth_axis` says what becomes of time points and echoes, that is of different slices at one position: refused,
    a volume each, or channels of one volume; `uneven` of slices that lie too unevenly. Raises ScanError saying why the
    series is not a volume, or that it claims more than `max_bytes` of voxels.
    """
    check_size(sum(path.stat().st_size for path in paths), max_bytes, "files")
    frames = _each_file(lambda path: read_frames(path, pixels=True), paths)
    check_size(sum(one.num_bytes for one in frames), max_bytes)
    slices = list(itertools.chain(*_each_file(decode, frames)))
    if _are_images(slices):
        return [_image(one) for one in slices]
    slices, dropped = _without_copies(slices)
    wanted = _Wanted(fourth_axis, max_bytes, uneven)
    (first, *others), left_out = _each_stack(slices, uneven, lambda stack: _volumes(stack, wanted))
    return [replace(first, corrections=(*first.corrections, *dropped, *left_out)), *others]


def read_series_geometry(paths: Sequence[Path], uneven: Uneven = None) -> list[Geometry]:
    """The geometry of a series' volumes, without its pixels.

    Time points and echoes count once.
    """
    slices = [one for path in paths for one in read_slices(path)]
    if _are_images(slices):
        return [_image_grid(one).geometry for one in slices]

    def grid(stack: Stack) -> list[SliceGrid]:
        return [lay_out(planes_of([place[0] for place in places_of(stack.slices, uneven)]), uneven)]

    grids, _ = _each_stack(slices, uneven, grid)
    return [Grid(grid.shape[::-1], grid.affine).geometry for grid in grids]


@dataclass(frozen=True)
class _Wanted:
    """What the settings want of stacks (`read_series`)."""

    fourth_axis: FourthAxis
    max_bytes: int
    uneven: Uneven


def _are_images(slices: Sequence[Slice]) -> bool:
    """Whether each slice is an image of its own. Raises ScanError for slices that are neither that nor placed."""
    lost = sum(one.plane is None for one in slices)
    with guarded("the header is damaged"):
        projections = all(one.plane is None and first_value(one.groups, "Modality") in PROJECTIONS for one in slices)
    if lost and len(slices) > 1 and not projections:
        raise ScanError(f"{lost} of {len(slices)} slices have no position and orientation")
    return len(slices) == 1 or projections


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


def _each_stack(slices: Sequence[Slice], uneven: Uneven, read: Callable[[Stack], list[T]]) -> tuple[list[T], list[str]]:
    """What `read` makes of a series' stacks, and which it left out. ScanError of the largest if it can make none."""
    found: list[T] = []
    left_out: list[tuple[Sequence[Slice], str]] = []
    every = stacks_of(slices, uneven)
    main = None
    for stack in every:
        try:
            found += read(stack)
            main = main or stack.slices[0]
        except LargeScanError:
            raise
        except ScanError as error:
            left_out.append((stack.slices, str(error)))
    if main is None:
        if len(every) > 1 and len(every[0].slices) < MIN_SLICES:
            apart = {unlike(every[0].slices[0], stack.slices[0]) for stack in every[1:]}
            kinds = f"{apart.pop()}s" if len(apart) == 1 else "orientations, matrix sizes and pixel spacings"
            raise ScanError(f"{len(slices)} slices in {len(every)} {kinds} are not a volume")
        raise ScanError(left_out[0][1])
    notes = []
    for members, reason in left_out:
        why = f": {reason}" if len(members) >= MIN_SLICES else ""
        many = f"{len(members)} slice{'s' * (len(members) > 1)}"
        notes.append(f"{many} of another {unlike(main, members[0]) or 'file'} left out{why}")
    return found, notes


def _volumes(stack: Stack, wanted: _Wanted) -> list[Volume]:
    """One stack as a volume, or a volume or channel for each of its time points and echoes."""
    places = places_of(stack.slices, wanted.uneven)
    distinct = [_distinct(place) for place in places]
    # Time points may be alike in places, beyond the patient say: those are no copies.
    if _is_ragged(places) or not _is_ragged(distinct):
        places = distinct
    dropped, notes = _dropped(len(stack.slices) - sum(map(len, places))), stack.notes
    fewest, most = min(map(len, places)), max(map(len, places))
    if most > 1:
        places, words, assumed = in_order_of_time(places)
        notes = (*notes, *assumed)
        if wanted.fourth_axis == "refuse":
            many = f"{most}" if fewest == most else f"{fewest} to {most}"
            raise ScanError(
                f"{many} different slices lie at each of {len(places)} positions ({words}): "
                "archive.fourth_axis=split makes a scan of each"
            )
        if fewest < most:
            raise ScanError(f"its {words} are incomplete: {fewest} to {most} slices lie at one position")
    times = [list(time) for time in zip(*places, strict=True)]
    parts = [times] if wanted.fourth_axis == "channels" else [[time] for time in times]
    return [_volume(part, dropped, notes, wanted) for part in parts]


def _is_ragged(places: Sequence[Sequence[Slice]]) -> bool:
    return len(set(map(len, places))) > 1


def _distinct(place: Sequence[Slice]) -> list[Slice]:
    """Slices at one position but for copies of the same pixels."""
    kept: list[Slice] = []
    for one in place:
        if not any(one.rescale == other.rescale and np.array_equal(one.pixels, other.pixels) for other in kept):
            kept.append(one)
    return kept


def _volume(
    channels: Sequence[Sequence[Slice]], dropped: tuple[str, ...], notes: tuple[str, ...], wanted: _Wanted
) -> Volume:
    """One volume of one or several time points, each with a slice at every position."""
    slices = [one for channel in channels for one in channel]
    grid = lay_out(planes_of(channels[0]), wanted.uneven)
    rescale = slices[0].rescale
    pixels, words = of_one_type([one.pixels for one in slices])
    if len({one.ndim for one in pixels}) > 1 or (pixels[0].ndim > 2 and len(channels) > 1):
        raise ScanError("colour and grey slices, or colour and time points, cannot share one volume")
    if any(one.rescale != rescale for one in slices):
        pixels = [one.pixels.astype(np.float32) * one.rescale[0] + one.rescale[1] for one in slices]
        rescale, words = (1.0, 0.0), ("rescaling that differs between slices was applied: voxels are real values",)
    # A finer step, or a tilt, makes more voxels than the files have.
    check_size(math.prod(grid.shape) * len(channels) * pixels[0][0, 0].nbytes, wanted.max_bytes)
    num = len(channels[0])
    pixels, valid, padded = _without_padding(pixels, slices, rescale[0])
    starts = range(0, len(pixels), num)
    filled = [fill(grid, pixels[start : start + num]) for start in starts]
    inside = None
    if valid is not None or grid.moves is not None:  # where slices do not reach there is no image either
        wide = [where.astype(np.uint8) for where in valid or [np.ones(one.shape, bool) for one in slices]]
        inside = np.all([fill(grid, wide[start : start + num], 0) for start in starts], axis=0).swapaxes(0, 2)
    xyz = np.stack(filled).transpose(3, 2, 1, 0) if len(filled) > 1 else np.swapaxes(filled[0], 0, 2)
    corrections = (*grid.corrections, *dropped, *words, *padded, *_joined(slices))
    placed = Grid(grid.shape[::-1], grid.affine, corrections=corrections, notes=notes)
    return _described(xyz, inside, placed, slices, rescale)


def _joined(slices: Sequence[Slice]) -> tuple[str, ...]:
    """Words for slices that have no series UID in common (`are_slices_of_a_stack`)."""
    count = len({one.source.series for one in slices})
    words = f"slices of {count} series UIDs joined, which are of one study and series number and at even distances"
    return (words,) if count > 1 else ()


def _described(
    xyz: NDArray[Any], valid: NDArray[np.bool_] | None, grid: Grid, slices: Sequence[Slice],
    rescale: tuple[float, float],
) -> Volume:  # fmt: skip
    """A Volume from voxels [x, y, z] or [x, y, z, channels] and which are valid, with the tags of its first slice.

    What was done to any of its slices is said once.
    """
    voxels, affine = grid.turned(xyz)
    tags = tags_of(slices[0].groups)
    inverted = ("MONOCHROME1: grey values inverted",) if any(one.inverted for one in slices) else ()
    done = dict.fromkeys(words for one in slices for words in one.corrections)
    assumed = dict.fromkeys(words for one in slices for words in one.notes)
    return Volume(
        voxels,
        affine,
        *rescale,
        grid.ndim,
        tags.get("Modality", ""),
        tags,
        (*grid.corrections, *done, *inverted),
        (*grid.notes, *assumed),
        None if valid is None else grid.turned(valid)[0],
    )
