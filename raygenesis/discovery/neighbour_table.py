"""The table of every scan's nearest scans, in parts that grow with the archive.

A part holds the scans numbered from a multiple of SCANS_PER_PART on, in order. Its metadata says among how many scans,
the first so many, they were searched for: a part whose scans are as they were is brought up to date by the new ones.
Scans that left the archive have numbers, but no neighbours, and are nobody's.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.archive.catalogue import strings
from raygenesis.discovery.exact import Neighbours, nearest
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, parquet_file, read_table
from raygenesis.workspace.fingerprint import digest_of_text

SCANS_PER_PART = 4096

NEIGHBOURS_SCHEMA = pa.schema(
    [("volume_id", pa.string()), ("neighbours", pa.list_(pa.string())), ("distances", pa.list_(pa.float32()))]
)

# In the metadata of a part: the number of scans that were searched, and the digest of their keys, "" of those gone.
SEARCHED, DIGEST = b"searched", b"ids"


def part_path(folder: Place, first: int) -> Place:
    """The part whose first scan has this number."""
    return folder / f"part-{first:09d}.parquet"


def part_paths(folder: Place) -> list[Place]:
    """The parts of a folder, in order."""
    return sorted(folder.glob("part-*.parquet"))


def digest_of_ids(ids: pa.StringArray, is_there: NDArray[np.bool_] | None = None) -> str:
    """The digest of the JSON list of these ids, "" in place of those that are not there, bool [n]."""
    if is_there is not None and not is_there.all():
        ids = pc.if_else(pa.array(is_there), ids, "")
    texts = (json.dumps(text) for text in strings(ids))
    return digest_of_text(itertools.chain("[", (", " * (number > 0) + text for number, text in enumerate(texts)), "]"))


def table_of(found: Neighbours, first: int, ids: pa.StringArray) -> pa.Table:
    """Rows (schema NEIGHBOURS_SCHEMA) of the scans numbered from `first` on; what is infinitely far is left out."""
    is_there = np.isfinite(found.distances)
    ends = pa.array(np.concatenate([[0], np.cumsum(is_there.sum(1))]).astype(np.int32))
    names = ids.take(pa.array(found.numbers[is_there]))
    lists = [pa.ListArray.from_arrays(ends, names), pa.ListArray.from_arrays(ends, pa.array(found.distances[is_there]))]
    return pa.table([ids[first : first + len(is_there)], *lists], schema=NEIGHBOURS_SCHEMA)


def neighbours_of(table: pa.Table, ids: pa.StringArray, k: int) -> Neighbours:
    """The numbers and distances in rows of a table, padded to k by -1 and infinity."""
    lengths = pc.list_value_length(table["neighbours"]).to_numpy()
    numbers, distances = np.full((len(table), k), -1, np.int64), np.full((len(table), k), np.inf, np.float32)
    filled = np.arange(k) < lengths[:, None]
    numbers[filled] = pc.index_in(pc.list_flatten(table["neighbours"]), value_set=ids).to_numpy()
    distances[filled] = pc.list_flatten(table["distances"]).to_numpy()
    return Neighbours(numbers, distances)


def read_neighbours(folder: Place, ids: pa.StringArray, k: int) -> Neighbours:
    """All rows of a finished table: numbers int64 [n, k] and distances float32 [n, k], padded by -1 and infinity.

    Raises WorkspaceError if a part is missing or damaged.
    """
    paths = [part_path(folder, first) for first in range(0, len(ids), SCANS_PER_PART)]
    return stacked([neighbours_of(read_part(path), ids, k) for path in paths])


def stacked(rows: Sequence[Neighbours]) -> Neighbours:
    """The rows of several tables in one, all of the same length."""
    return Neighbours(
        np.concatenate([some.numbers for some in rows]), np.concatenate([some.distances for some in rows])
    )


def read_part(path: Place, columns: Sequence[str] = NEIGHBOURS_SCHEMA.names) -> pa.Table:
    """Columns of a part, with its metadata. Raises WorkspaceError if it is missing or damaged."""
    try:
        return read_table(path, columns=list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        fault = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise WorkspaceError(f"{path} is {fault}: run `raygenesis neighbours`, which makes it anew") from None


def are_readable(folder: Place, num_scans: int) -> bool:
    """Whether the parts of so many scans are there, and none of them is damaged."""
    return all(_is_readable(part_path(folder, first)) for first in range(0, num_scans, SCANS_PER_PART))


def _is_readable(path: Place) -> bool:
    try:
        return parquet_file(path).metadata.num_rows > 0
    except (pa.ArrowInvalid, OSError):
        return False


def stamped(table: pa.Table, searched: int, digest: str) -> pa.Table:
    """Rows that say among how many scans, with which digest of their ids, they were searched for."""
    return table.replace_schema_metadata({SEARCHED: str(searched), DIGEST: digest})


def num_searched(
    folder: Place, ids: pa.StringArray, keys: pa.StringArray, is_there: NDArray[np.bool_]
) -> dict[int, int]:
    """By the first number of each part that there is to be: among how many scans it was searched for.

    keys: what identifies the volumes as they were embedded. 0 where there is no part, or it is damaged, or does not
    hold for the first so many of these, or others of them were there then.
    """
    digest = functools.cache(lambda number: digest_of_ids(keys[:number], is_there[:number]))
    return {first: _num_searched(folder, first, ids, digest) for first in range(0, len(ids), SCANS_PER_PART)}


def _num_searched(folder: Place, first: int, ids: pa.StringArray, digest: Callable[[int], str]) -> int:
    path = part_path(folder, first)
    if not _is_readable(path):
        return 0
    table = read_part(path, ["volume_id"])
    facts = table.schema.metadata or {}
    searched = int(facts.get(SEARCHED, b"0"))
    own = ids[first : min(first + SCANS_PER_PART, searched)]
    if searched > len(ids) or not table["volume_id"].combine_chunks().equals(own):
        return 0
    return searched if facts.get(DIGEST, b"").decode() == digest(searched) else 0


def without_self(found: Neighbours, own: NDArray[np.int64], k: int) -> Neighbours:
    """The first k neighbours of scans that were searched for among all: none is its own.

    own: number [q] of each. A scan that was not found, where there are copies enough, leaves its farthest out.
    """
    is_self = found.numbers == own[:, None]
    order = np.argsort(is_self, axis=1, kind="stable")[:, :k]
    distances = np.where(is_self, np.float32(np.inf), found.distances)
    return _padded(np.take_along_axis(found.numbers, order, 1), np.take_along_axis(distances, order, 1), k)


def merged(parts: Sequence[Neighbours], k: int) -> Neighbours:
    """The k nearest of the same scans' neighbours among several sets, none of which share any."""
    numbers = np.concatenate([part.numbers for part in parts], 1)
    distances = np.concatenate([part.distances for part in parts], 1)
    return _padded(*nearest(numbers, distances, k), k)


def among(found: Neighbours, is_kept: NDArray[np.bool_]) -> Neighbours:
    """The rows without the scans that are not kept, bool [n], which have no neighbours themselves."""
    is_there = (found.numbers >= 0) & is_kept[found.numbers] & is_kept[:, None]
    distances = np.where(is_there, found.distances, np.float32(np.inf))
    order = np.argsort(~is_there, axis=1, kind="stable")
    numbers: NDArray[np.int64] = np.take_along_axis(found.numbers, order, 1)
    return _padded(numbers, np.take_along_axis(distances, order, 1), numbers.shape[1])


def _padded(numbers: NDArray[np.int64], distances: NDArray[np.float32], k: int) -> Neighbours:
    """Rows of length k; what is infinitely far has the number -1."""
    lacking = [(0, 0), (0, k - numbers.shape[1])]
    distances = np.pad(distances.astype(np.float32), lacking, constant_values=np.inf)
    return Neighbours(np.where(np.isfinite(distances), np.pad(numbers, lacking), -1), distances)
