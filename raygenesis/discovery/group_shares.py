"""How many references each group of an archive gets: patterns are found within a group, and labels never cross it."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.cluster.progress import say
from raygenesis.discovery.groups import NO_GROUP
from raygenesis.discovery.patients import LARGE_ENOUGH, Patients, check_counts
from raygenesis.discovery.scan_table import read_scans
from raygenesis.errors import SettingsError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import DiscoverySettings
from raygenesis.workspace.files import Place


def group_numbers(folder: Place, patients: Patients) -> NDArray[np.int64]:
    """The group of each volume, by the table in `folder`; NO_GROUP of outliers, and of all copies of a scan but one.

    That one can be cropped, if any can; of those that can it is the first.
    """
    scans = read_scans(folder)
    where = pc.index_in(patients.ids, value_set=scans["volume_id"])
    groups = pc.fill_null(scans["group"].take(where), NO_GROUP).to_numpy().astype(np.int64)
    original = scans["duplicate_of"].take(where)
    same = pc.if_else(pc.equal(pc.fill_null(original, ""), ""), patients.ids, original).combine_chunks()
    order = np.argsort(~(patients.is_there & patients.is_roomy), kind="stable")
    _, first = np.unique(same.dictionary_encode().indices.to_numpy()[order], return_index=True)
    is_copy = np.ones(len(groups), bool)
    is_copy[order[first]] = False
    return np.where(is_copy, NO_GROUP, groups)


def references_by_group(patients: Patients, groups: NDArray[np.int64], discovery: DiscoverySettings) -> tuple[int, ...]:
    """The number of references of each group: in proportion to its training subjects, or as many of each.

    Groups that are too small for the neighbours of a reference get none, which is said. Raises SettingsError where all
    are, all together have too few subjects, or there is no group.
    """
    members = [patients.among(groups == group) for group in range(groups.max(initial=NO_GROUP) + 1)]
    if not members:
        raise SettingsError(
            f"no reference can be chosen: all {len(groups)} scans are outliers (`raygenesis report` shows them): add "
            "scans that are like each other"
        )
    training = [some.num_subjects(TRAINING) for some in members]
    held_out = [some.num_subjects(VALIDATION) for some in members]
    wanted = discovery.num_neighbours, discovery.num_validation_neighbours
    is_able = [there >= wanted[0] and apart >= wanted[1] for there, apart in zip(training, held_out, strict=True)]
    if not any(is_able):
        largest = int(np.argmax(training))
        of_it = "" if len(members) == 1 else f"in the largest of {len(members)} groups "
        check_counts(training[largest], held_out[largest], f"{of_it}{LARGE_ENOUGH}", discovery)
    room = [there * able for there, able in zip(training, is_able, strict=True)]
    check_counts(sum(room), sum(held_out), LARGE_ENOUGH, discovery)
    shares = _shared(discovery.num_references, room, is_equal=discovery.references_by_group == "equal")
    _say(shares, room, training, held_out)
    return shares


def _shared(number: int, room: list[int], *, is_equal: bool) -> tuple[int, ...]:
    """So many references over groups by the method of Sainte-Laguë, to none more than it has room for."""
    shares = [0] * len(room)
    for _ in range(number):
        open_ones = [group for group, most in enumerate(room) if shares[group] < most]
        best = max(open_ones, key=lambda group: ((1 if is_equal else room[group]) / (2 * shares[group] + 1), -group))
        shares[best] += 1
    return tuple(shares)


def _say(shares: tuple[int, ...], room: list[int], training: list[int], held_out: list[int]) -> None:
    """A line on what each group got, where there are several."""
    if len(shares) == 1:
        return
    each = (
        f"group {group} {share}" + f" (too small: {subjects} training and {apart} held-out subjects)" * (not most)
        for group, (share, most, subjects, apart) in enumerate(zip(shares, room, training, held_out, strict=True))
    )
    say("discover", f"references by group: {', '.join(each)}")
