"""Stacks of slices: who belongs together, in which order, at which places.

Slices of plain series, of enhanced multi-frame files and of multi-frame files without functional groups go through here
alike. What belongs together is told by UIDs, by where slices lie, and by the tags of `DISTINCTIONS`; a file or a folder
is asked last. What cannot be told is a ScanError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from raygenesis.archive.formats.dicom_elements import first_value, floats, guarded
from raygenesis.archive.formats.dicom_file import DISTINCTIONS, Slice
from raygenesis.archive.formats.slices import MIN_SLICES, Plane, Uneven, difference, lay_out, positions
from raygenesis.errors import ScanError

# What may differ from slice to slice of one volume, as slices are measured one after another.
WITHIN_VOLUMES = ("trigger delay", "inversion time", "frame time")

# Of a header's step between slices and theirs, how far these may be apart and be the same.
SAME_STEP = 0.01

# What a SliceSource has for a UID, in words that take a plural.
UID_NAMES = {"study": "study UID", "frame_of_reference": "frame of reference UID"}


@dataclass(frozen=True)
class Stack:
    """Slices that belong together. notes: what was assumed for that, in words."""

    slices: Sequence[Slice]
    notes: tuple[str, ...] = ()


def planes_of(slices: Sequence[Slice]) -> list[Plane]:
    """Where slices lie that are no images of their own: all of them have a place then."""
    return [one.plane for one in slices if one.plane is not None]


def stacks_of(slices: Sequence[Slice], uneven: Uneven) -> list[Stack]:
    """The stacks of a series' slices, that of most slices first.

    A stack is of one study, frame of reference, matrix size, orientation and pixel spacing. A UID that differs from
    slice to slice tells nothing: whoever took names out of the files made those.
    """
    telling, notes = _telling_uids(slices)
    found: list[list[Slice]] = []
    for one in slices:
        stack = next((stack for stack in found if not _unlike(stack[0], one, telling)), None)
        if stack is None:
            found.append([one])
        else:
            stack.append(one)
    split = [part for stack in found for part in _split(Stack(stack, notes), uneven)]
    return sorted(split, key=lambda stack: len(stack.slices), reverse=True)


def unlike(one: Slice, other: Slice) -> str:
    """What keeps two slices from being in one stack; empty if nothing does."""
    tag = next((word for word in DISTINCTIONS if one.distinctions[word] != other.distinctions[word]), "")
    return _unlike(one, other, list(UID_NAMES)) or tag


def _telling_uids(slices: Sequence[Slice]) -> tuple[list[str], tuple[str, ...]]:
    """The names of UIDs that tell slices apart, and notes where there are several."""
    counts = {name: len({getattr(one.source, name) for one in slices}) for name in UID_NAMES}
    notes = []
    for name, count in counts.items():
        if 1 < count < len(slices):
            notes.append(f"its series UID is used with {count} {UID_NAMES[name]}s, each a volume of its own")
        elif count > 1:
            notes.append(f"each of its slices has another {UID_NAMES[name]}, which was not heeded")
    return [name for name, count in counts.items() if count < len(slices)], tuple(notes)


def _unlike(one: Slice, other: Slice, telling: Sequence[str]) -> str:
    for name in telling:
        if getattr(one.source, name) != getattr(other.source, name):
            return UID_NAMES[name]
    (plane, another) = planes_of((one, other))
    return difference(plane, another)


def _split(stack: Stack, uneven: Uneven) -> list[Stack]:
    """The stack, or those in it that a tag or a file tells apart and that lie at places of their own."""
    for word in (*DISTINCTIONS, "file"):
        if word in WITHIN_VOLUMES:
            continue
        parts = _parts(stack.slices, [_value(one, word) for one in stack.slices])
        if len(parts) > 1 and _are_apart(parts, stack.slices, uneven):
            note = f"{word}s that lie at places of their own are volumes of their own"
            return [one for part in parts for one in _split(Stack(part, (*stack.notes, note)), uneven)]
    return [stack]


def _value(one: Slice, word: str) -> Hashable:
    return one.source.path if word == "file" else one.distinctions[word]


def _parts(slices: Sequence[Slice], values: Sequence[Hashable]) -> list[list[Slice]]:
    """The slices of each value, in order of the values' first."""
    parts: dict[Hashable, list[Slice]] = {}
    for one, value in zip(slices, values, strict=True):
        parts.setdefault(value, []).append(one)
    return list(parts.values())


def _are_apart(parts: Sequence[Sequence[Slice]], every: Sequence[Slice], uneven: Uneven) -> bool:
    """Whether each part is a stack by itself, at other places than the others, and all are none together."""
    if not all(_is_laid_out(part, uneven) for part in parts):
        return False
    number = {id(one): n for n, part in enumerate(parts) for one in part}
    places = [{number[id(every[index])] for index in place} for place in positions(planes_of(every))]
    members = [{n for n, place in enumerate(places) if part in place} for part in range(len(parts))]
    most = max(members, key=len)
    if all(places_of_part <= most for places_of_part in members):
        return False  # time points, some of which may be incomplete
    if any(len(place) > 1 for place in places) or not _is_laid_out(every, uneven):
        return True
    return _interleave(places) and not _is_step_of_header(every, len(places))


def _interleave(places: Sequence[set[int]]) -> bool:
    """Whether parts lie between each other, where each of `places` along the normal is one part's."""
    changes = sum(one != other for one, other in pairwise(places))
    return changes >= len(set().union(*places))


def _is_laid_out(slices: Sequence[Slice], uneven: Uneven) -> bool:
    planes = planes_of(slices)
    places = [planes[place[0]] for place in positions(planes)]
    if len(places) < MIN_SLICES:
        return False
    try:
        lay_out(places, uneven)
    except ScanError:
        return False
    return True


def _is_step_of_header(slices: Sequence[Slice], num_places: int) -> bool:
    """Whether the header knows how far all slices together are apart, as it does where they are measured in turns."""
    depths = np.array([plane.position for plane in planes_of(slices)]) @ planes_of(slices)[0].axes[2]
    with guarded("the header is damaged"):
        step = floats(slices[0].groups, "SpacingBetweenSlices", 1)
    actual = float(np.ptp(depths)) / (num_places - 1)
    return step is not None and abs(abs(step[0]) - actual) <= SAME_STEP * actual


def places_of(stack: Sequence[Slice], uneven: Uneven) -> list[list[Slice]]:
    """One stack's slices by place along the normal.

    Raises ScanError if the places are too few for a volume, or if two scans seem to be mixed in them.
    """
    places = [[stack[index] for index in place] for place in positions(planes_of(stack))]
    if len(places) < MIN_SLICES:
        at = f" at {len(places)} position{'s' * (len(places) > 1)}" if len(places) < len(stack) else ""
        raise ScanError(f"{len(stack)} slices{at} are not a volume: expected {MIN_SLICES} positions or more")
    _check_folders(places, uneven)
    _check_numbers(places)
    return places


def _check_folders(places: Sequence[Sequence[Slice]], uneven: Uneven) -> None:
    """Raise ScanError where the slices of two folders lie between each other, and each folder's are a stack."""
    every = [one for place in places for one in place]
    folders = _parts(every, [_folder(one) for one in every])
    if len(folders) < 2 or not all(_is_laid_out(part, uneven) for part in folders):
        return
    number = {_folder(part[0]): n for n, part in enumerate(folders)}
    by_place = [{number[_folder(one)] for one in place} for place in places]
    if all(len(place) == 1 for place in by_place) and _interleave(by_place):
        raise used_in_folders(len(folders))


def _folder(one: Slice) -> Hashable:
    return one.source.path.parent


def used_in_folders(num_folders: int) -> ScanError:
    return ScanError(
        f"one series UID is used in {num_folders} folders for different slices, and nothing in the headers tells them "
        "apart: keep one of the folders, or give each a series UID of its own"
    )


def _check_numbers(places: Sequence[Sequence[Slice]]) -> None:
    """Raise ScanError where every instance number comes several times, mixed along the normal: of two scans."""
    if any(len(place) > 1 for place in places):
        return
    numbers = [instance_number(place[0]) for place in places]
    counts = Counter(numbers)
    distinct, times = len(counts), set(counts.values())
    if len(times) > 1 or distinct == len(numbers) or distinct < MIN_SLICES:
        return
    blocks = (numbers[start : start + distinct] for start in range(0, len(numbers), distinct))
    if any(len(set(block)) < distinct for block in blocks):
        raise ScanError(
            f"each of its {distinct} instance numbers comes {times.pop()} times, at places that lie between each "
            "other: scans seem to share one series UID"
        )


def instance_number(one: Slice) -> tuple[float, int]:
    """What numbers slices in their series: the file's number, and the frame's in it."""
    with guarded("the header is damaged"):
        return float(first_value(one.groups, "InstanceNumber") or 0), one.identity[1]


def in_order_of_time(places: Sequence[Sequence[Slice]]) -> tuple[list[list[Slice]], str, tuple[str, ...]]:
    """The slices at each place in the order of what tells them apart; words for what that is; and notes.

    Raises ScanError where nothing tells them apart.
    """
    differing = [word for word in DISTINCTIONS if any(len({one.distinctions[word] for one in at}) > 1 for at in places)]

    def key(one: Slice) -> tuple[Any, ...]:
        return tuple(one.distinctions[word] for word in differing)

    is_told = all(len(set(map(key, at))) == len(at) for at in places)
    folders = [{_folder(one) for one in at} for at in places]
    if not is_told and all(len(here) == len(at) > 1 for here, at in zip(folders, places, strict=True)):
        raise used_in_folders(len(set().union(*folders)))
    if not is_told and not all(len({(key(one), instance_number(one)) for one in at}) == len(at) for at in places):
        raise ScanError(
            f"{max(map(len, places))} different slices lie at each of {len(places)} positions, and nothing in the "
            "headers tells them apart"
        )
    notes = () if is_told else ("slices at one position told apart by their instance numbers",)
    words = " and ".join(f"{word}s" for word in differing) or "only their instance numbers differ"
    return [sorted(at, key=lambda one: (*key(one), instance_number(one))) for at in places], words, notes
