"""The identity of volumes: what is derived from one is keyed by its id and by the fingerprint that is made here.

The id names the bytes of the source, the fingerprint what these became: voxels, and all that a reader needs of their
record. Other settings of the archive, or another version of ours, that change either change the fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygenesis.archive.catalogue import ROWS_PER_GROUP, VolumeRecord, read_columns
from raygenesis.workspace.files import Place
from raygenesis.workspace.fingerprint import digest

# Of a record: the voxels, and what turns them into places and values in every stage that reads them.
READ = (
    "voxel_fingerprint", "shape", "num_channels", "spacing_mm", "affine", "dtype", "slope", "intercept", "low", "high",
    "levels",
)  # fmt: skip
NUMBERS = ("spacing_mm", "affine", "slope", "intercept", "low", "high")  # floats, where a record may say 1 for 1.0


def volume_fingerprint(record: VolumeRecord) -> str:
    """What identifies the voxels of a volume and how they are read, as 16 hex digits."""
    values = {name: record[name] for name in READ}  # type: ignore[literal-required]
    floats = {name: np.asarray(values[name], np.float64).tolist() for name in NUMBERS}
    return digest([(values | floats)[name] for name in READ])


def volume_fingerprints(catalog: Place, volume_ids: Iterable[str] | None = None, ndim: int | None = None) -> pa.Table:
    """Ids and fingerprints (columns volume_id, fingerprint) of a catalogue's volumes, chosen as `read_columns` does."""
    ids = read_columns(catalog, ["volume_id"], volume_ids, ndim)["volume_id"]
    fingerprints = [
        volume_fingerprint(record)
        for first in range(0, len(ids), ROWS_PER_GROUP)  # few records are held at once
        for record in read_columns(catalog, READ, ids.slice(first, ROWS_PER_GROUP)).to_pylist()
    ]
    return pa.table({"volume_id": ids, "fingerprint": pa.array(fingerprints, pa.string())})


def keys_of(volume_ids: pa.ChunkedArray, fingerprints: pa.ChunkedArray) -> pa.ChunkedArray:
    """One text a volume, of its id and its fingerprint, that what is derived from it is kept under."""
    return pc.binary_join_element_wise(volume_ids, fingerprints, "/")
