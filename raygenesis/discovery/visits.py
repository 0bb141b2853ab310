"""The plan of a store: which scans are visited for which reference, in parts, each scan once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.patterns.schema import TRAINING, VALIDATION

# One row a visit: a scan whose patterns at one reference's coordinates are to be cropped.
VISIT = pa.schema(
    [
        ("part", pa.int32()),
        ("split", pa.string()),
        ("reference", pa.int32()),
        ("rank", pa.int32()),
        ("volume_id", pa.string()),
    ]
)

SPLITS = (TRAINING, VALIDATION)


class Visit(TypedDict):
    """A row of a plan (schema VISIT)."""

    part: int
    split: str
    reference: int  # UNLABELLED of random crops
    rank: int
    volume_id: str


def plan_visits(
    neighbours: Sequence[Mapping[str, Sequence[str] | pa.StringArray]], patterns_per_visit: int, patterns_per_part: int,
    most_in_memory: int = sys.maxsize,
) -> pa.Table:  # fmt: skip
    """Every visit, in the order in which it is stored (schema VISIT).

    neighbours: for each reference volume ids by split, nearest first, the reference itself the first of the training
    ones. patterns_per_visit: of a scan for one reference. patterns_per_part: at most, unless one scan has more.
    most_in_memory: so many patterns fit in the memory of who makes a part. Every volume falls in one part, nearest
    volumes first, but for one of more patterns than that, which has several; splits never share a part.
    """
    groups = [_texts(found[split]) for found in neighbours for split in SPLITS]
    sizes, ids = [len(group) for group in groups], pa.concat_arrays(groups)
    # One number a visit: of its split, its reference, and its rank, which held-out patients count from 1.
    split = np.repeat(np.arange(len(groups)) % 2, sizes)
    reference = np.repeat(np.arange(len(groups)) // 2, sizes)
    rank = np.concatenate([number % 2 + np.arange(size) for number, size in enumerate(sizes)])
    # Each volume of a split is one scan, whose visits stay together; `scans` are in order of split and id.
    order_of_id = pc.rank(ids, tiebreaker="dense").to_numpy().astype(np.int64)
    scan = split * (len(ids) + 1) + order_of_id
    piece = _pieces(scan, reference, rank, max(1, most_in_memory // patterns_per_visit))
    scans, first, scan = np.unique(scan * (len(ids) + 1) + piece, return_index=True, return_inverse=True)
    split_of_scan = split[first]
    first_rank = np.full(len(scans), len(ids))
    np.minimum.at(first_rank, scan, rank)
    order = np.lexsort((scans, first_rank, split_of_scan))
    num_patterns = np.bincount(scan) * patterns_per_visit
    part = np.empty(len(scans), np.int32)
    part[order] = _part_of_each(split_of_scan[order], num_patterns[order], min(patterns_per_part, most_in_memory))
    rows = np.lexsort((reference, rank, part[scan]))
    plan = {
        "part": part[scan[rows]], "split": pa.array(SPLITS).take(pa.array(split[rows])),
        "reference": reference[rows], "rank": rank[rows], "volume_id": ids.take(pa.array(rows)),
    }  # fmt: skip
    return pa.table(plan).cast(VISIT)


def _pieces(
    scan: NDArray[np.int64], reference: NDArray[np.int64], rank: NDArray[np.int64], visits_per_piece: int
) -> NDArray[np.int64]:
    """Which piece of its scan each visit is of: 0 of all, unless a scan has more visits than a piece may."""
    order = np.lexsort((reference, rank, scan))
    _, begins, counts = np.unique(scan[order], return_index=True, return_counts=True)
    piece = np.empty(len(scan), np.int64)
    piece[order] = (np.arange(len(scan)) - np.repeat(begins, counts)) // visits_per_piece
    return piece


def _texts(texts: Sequence[str] | pa.StringArray) -> pa.StringArray:
    return texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())


def _part_of_each(
    split: NDArray[np.int64], num_patterns: NDArray[np.int64], patterns_per_part: int
) -> NDArray[np.int32]:
    """The part of each scan, in order: a new one where the last is full, or another split begins."""
    part, filled, previous = -1, 0, -1
    parts = np.empty(len(split), np.int32)
    for number, (own, count) in enumerate(zip(split, num_patterns, strict=True)):
        if own != previous or filled + count > patterns_per_part:
            part, filled, previous = part + 1, 0, own
        filled += count
        parts[number] = part
    return parts
