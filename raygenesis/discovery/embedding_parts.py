"""The parts of embeddings: which volumes belong to which, and which parts are of the volumes as they are now."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygenesis.archive.volume_identity import keys_of
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, read_table
from raygenesis.workspace.fingerprint import digest_of_text

# Which part a volume is in, by the part's first number.
LISTING_FILE = "listing.parquet"
LISTING = pa.schema([("volume_id", pa.string()), ("start", pa.int64())])


def part_path(folder: Place, start: int) -> Place:
    """The part whose first volume has this number."""
    return folder / f"part-{start:09d}.parquet"


def read_listing(folder: Place) -> pa.Table:
    """Rows (schema LISTING) of all parts in order; none where nothing has been embedded. Raises WorkspaceError."""
    path = folder / LISTING_FILE
    try:
        return read_table(path, schema=LISTING) if path.is_file() else LISTING.empty_table()
    except (pa.ArrowException, OSError):
        raise WorkspaceError(f"{path} is damaged: remove {folder} and run `raygenesis embed` to make it anew") from None


def extended(listing: pa.Table, ids: pa.ChunkedArray, volumes_per_part: int) -> pa.Table:
    """The listing, with the volumes that are new in parts of their own, for good."""
    new = ids.filter(pc.invert(pc.is_in(ids, value_set=listing["volume_id"])))
    if len(new):
        begin = listing["start"][-1].as_py() + volumes_per_part if len(listing) else 0
        starts = begin + np.arange(len(new)) // volumes_per_part * volumes_per_part
        listing = pa.concat_tables([listing, pa.table([new, pa.array(starts)], schema=LISTING)]).combine_chunks()
    return listing


def missing_parts(folder: Place, listing: pa.Table, known: pa.Table) -> list[tuple[int, pa.ChunkedArray]]:
    """The first number and the volumes of each part that is to be made, of volumes that are in the archive.

    known: these volumes and their fingerprints (columns volume_id, fingerprint).
    """
    whole = whole_parts(folder, known)
    there = listing.filter(pc.is_in(listing["volume_id"], value_set=known["volume_id"]))
    return [(start, volumes) for start, volumes in _parts(there) if part_path(folder, start).name not in whole]


def whole_parts(folder: Place, known: pa.Table) -> set[str]:
    """Names of the parts that can be read and whose volumes are as they were embedded, where they are there still."""
    paths: list[Place] = sorted(folder.glob("part-*.parquet"))
    found = [(path.name, table) for path in paths if (table := _keys_in(path)) is not None]
    if not found:
        return set()
    rows = pa.concat_tables([table for _, table in found])
    is_known = pc.is_in(rows["volume_id"], value_set=known["volume_id"])
    is_same = pc.is_in(keys_of(rows["volume_id"], rows["fingerprint"]), value_set=keys_of(*known.columns))
    is_other = pc.and_not(is_known, is_same).to_numpy(zero_copy_only=False)
    ends = np.cumsum([len(table) for _, table in found])
    return {name for (name, table), end in zip(found, ends, strict=True) if not is_other[end - len(table) : end].any()}


def are_readable(folder: Place, number: int) -> bool:
    """Whether there are so many parts, and none of them is damaged."""
    paths: list[Place] = list(folder.glob("part-*.parquet"))
    return len(paths) == number and all(_keys_in(path) is not None for path in paths)


def _keys_in(path: Place) -> pa.Table | None:
    """Ids and fingerprints in a part; None of one that is damaged, or has none."""
    try:
        return read_table(path, columns=["volume_id", "fingerprint"])
    except (pa.ArrowException, OSError):
        return None


def _parts(listing: pa.Table) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """The first number of each part and the ids of its volumes."""
    starts, begins = np.unique(listing["start"].to_numpy(), return_index=True)
    for start, begin, end in zip(starts.tolist(), begins, [*begins[1:], len(listing)], strict=True):
        yield start, listing["volume_id"][begin:end]


def digest_of_listing(listing: pa.Table) -> str:
    """The digest of the tree of parts: start → volume ids."""
    texts = (f'"{start}": {json.dumps(ids.to_pylist())}' for start, ids in _parts(listing))
    return digest_of_text(itertools.chain("{", (", " * (number > 0) + text for number, text in enumerate(texts)), "}"))
