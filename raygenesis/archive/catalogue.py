"""The archive's table of volumes, and the split of its subjects.

What plans a stage reads the columns that it needs: of a million volumes at most 0.7 GiB are held on the driver
(`python -m tests.benchmarks.scale`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, read_table, write_table

CATALOGUE = pa.schema(
    [
        ("volume_id", pa.string()),  # blake2b of the source files' bytes; names its folder
        ("subject_id", pa.string()),  # keyed hash, or the name itself with archive.keep_ids
        ("source", pa.string()),  # of the scan's path, likewise
        ("source_bytes", pa.int64()),
        ("modality", pa.string()),  # DICOM's code, empty where the files do not say
        ("shape", pa.list_(pa.int32())),  # z y x (2D: y x)
        ("num_channels", pa.int32()),
        ("spacing_mm", pa.list_(pa.float64())),  # z y x (2D: y x)
        ("affine", pa.list_(pa.float64())),  # 16 numbers, row by row: index (x, y, z, 1) to RAS+ mm
        ("dtype", pa.string()),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("low", pa.list_(pa.float64())),  # per channel: stored value at the 0.5 percentile
        ("high", pa.list_(pa.float64())),  # and at the 99.5
        ("levels", pa.list_(pa.list_(pa.int32()))),  # per pyramid level: scan voxels per voxel, z y x
        ("tags", pa.string()),  # JSON object of acquisition facts
        ("corrections", pa.list_(pa.string())),  # what was put right on the way into the archive
        ("notes", pa.list_(pa.string())),  # what was assumed; catalogues of earlier versions have none
        ("voxel_fingerprint", pa.string()),  # hash of type, shape and voxels: finds duplicates
        ("stored_bytes", pa.int64()),
    ]
)


class VolumeRecord(TypedDict):
    """What the archive records of a volume itself, in the volume's attributes and in the catalogue (`CATALOGUE`)."""

    volume_id: str
    modality: str
    shape: list[int]
    num_channels: int
    spacing_mm: list[float]
    affine: list[float]
    dtype: str
    slope: float
    intercept: float
    low: list[float]
    high: list[float]
    levels: list[list[int]]
    tags: str
    corrections: list[str]
    notes: list[str]
    voxel_fingerprint: str
    stored_bytes: int


class CatalogueRow(VolumeRecord):
    """A row of the catalogue (`CATALOGUE`): a volume, its subject and its scan."""

    subject_id: str
    source: str
    source_bytes: int


# Small enough that who asks for some volumes next to each other reads little else.
ROWS_PER_GROUP = 8192


@dataclass(frozen=True)
class CatalogueRows:
    """The rows of some volumes, whose ids are in order: they are read where they are looped over, few at a time."""

    path: Place
    volume_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.volume_ids)

    def __getitem__(self, part: slice) -> CatalogueRows:
        return CatalogueRows(self.path, self.volume_ids[part])

    def __iter__(self) -> Iterator[CatalogueRow]:
        for start in range(0, len(self), ROWS_PER_GROUP):
            yield from read_catalogue(self.path, self.volume_ids[start : start + ROWS_PER_GROUP])


def write_catalogue(path: Place, rows: Sequence[CatalogueRow]) -> pa.Table:
    """Replace the catalogue, and return it; rows in order of volume id."""
    table = pa.Table.from_pylist(rows, CATALOGUE)
    write_table(path, table, row_group_size=ROWS_PER_GROUP)
    return table


def read_catalogue(path: Place, volume_ids: Iterable[str] | None = None, ndim: int | None = None) -> list[CatalogueRow]:
    """Catalogue rows, all or those of some ids or of some number of spatial dimensions, in order of volume id."""
    return read_columns(path, CATALOGUE.names, volume_ids, ndim).to_pylist()


def voxel_bytes(table: pa.Table) -> int:
    """Bytes of the voxels of volumes, at their finest level and unpacked: of `shape`, `num_channels` and `dtype`."""
    if not len(table):
        return 0
    lengths = pc.list_value_length(table["shape"]).to_numpy()
    sides = pc.list_flatten(table["shape"]).to_numpy().astype(np.int64)
    values = np.multiply.reduceat(sides, np.cumsum(lengths) - lengths) * table["num_channels"].to_numpy()
    kinds = table["dtype"].combine_chunks().dictionary_encode()
    itemsizes = np.array([np.dtype(name).itemsize for name in kinds.dictionary.to_pylist()])
    return int((values * itemsizes[kinds.indices.to_numpy()]).sum())


def read_columns(
    path: Place, columns: Sequence[str], volume_ids: Iterable[str] | None = None, ndim: int | None = None
) -> pa.Table:
    """Some columns of the catalogue, as a table: what a million volumes need."""
    wanted = None
    if volume_ids is not None:
        asked, field = pa.array(volume_ids, pa.string()), pc.field("volume_id")
        wanted = field.isin(asked)
        if len(asked):  # lets whole row groups be passed by
            wanted &= (field >= pc.min(asked)) & (field <= pc.max(asked))
    needed = list(dict.fromkeys([*columns, "volume_id", "shape"]))
    try:
        # Of a large catalogue, many threads would hold a great deal at once, and take longer in all.
        table = read_table(path, schema=CATALOGUE, filters=wanted, columns=needed, use_threads=False, pre_buffer=False)
    except FileNotFoundError:
        raise WorkspaceError(f"{path} is not there: run `raygenesis ingest` first") from None
    except (pa.ArrowInvalid, OSError):
        raise WorkspaceError(
            f"{path} is damaged: remove it and manifest.json beside it and ingest again; volumes of files that are "
            "still there are not decoded again, and others are removed"
        ) from None
    if "notes" in needed and table["notes"].null_count:
        notes = pc.coalesce(table["notes"], pa.scalar([], CATALOGUE.field("notes").type))
        table = table.set_column(table.column_names.index("notes"), CATALOGUE.field("notes"), notes)
    ids = table["volume_id"]
    if table.num_rows > 1 and not pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py():
        table = table.sort_by("volume_id")
    if ndim is not None and table.num_rows:
        table = table.filter(pc.equal(pc.list_value_length(table["shape"]), ndim))
        if not table.num_rows:
            raise WorkspaceError(f"the archive has no {ndim}D scans, and discovery.cube_shape asks for {ndim}D")
    return table.select(list(columns))


def num_held_out(num_subjects: int, fraction: float) -> int:
    """How many of so many subjects are held out: at least one and never all."""
    return min(max(1, round(fraction * num_subjects)), num_subjects - 1)


def first_volumes(rows: Iterable[CatalogueRow]) -> dict[str, str]:
    """The first volume id of each subject: it stands for the subject, whatever the subject is called."""
    first: dict[str, str] = {}
    for row in rows:
        subject, volume = row["subject_id"], row["volume_id"]
        first[subject] = min(volume, first.get(subject, volume))
    return first


def held_out_subjects(rows: Iterable[CatalogueRow], fraction: float, seed: int) -> frozenset[str]:
    """The validation subjects among catalogue rows: the `fraction` whose hashes come first.

    Depends on the seed and on the content of the scans alone, not on what the subjects are called here: every stage,
    and every workspace of the same scans, holds out the same.
    """
    pairs = [(row["volume_id"], row["subject_id"]) for row in rows]
    volumes, subjects = (pa.array([pair[column] for pair in pairs], pa.string()) for column in (0, 1))
    return frozenset(subjects.filter(pa.array(is_held_out(volumes, subjects, fraction, seed))).to_pylist())


def is_held_out(volumes: pa.StringArray, subjects: pa.StringArray, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Whether the subject of each volume is held out (`held_out_subjects`): bool [n]."""
    numbered = subjects.dictionary_encode()
    table = pa.table({"subject": numbered.indices, "volume": volumes})
    first = table.group_by("subject").aggregate([("volume", "min")])
    order = hash_order(f"{seed}/", first["volume_min"])
    chosen = np.zeros(len(first), bool)
    chosen[first["subject"].to_numpy()[order[: num_held_out(len(first), fraction)]]] = True
    return chosen[numbered.indices.to_numpy()]


def hash_order(prefix: str, texts: pa.StringArray | pa.ChunkedArray) -> NDArray[np.int64]:
    """The places of texts in order of the SHA-256 hashes of prefix and text."""
    hashes = (hashlib.sha256(f"{prefix}{text}".encode()).digest() for text in strings(texts))
    return np.argsort(np.fromiter(hashes, "S32", len(texts)), kind="stable")


def strings(column: pa.Array | pa.ChunkedArray) -> Iterator[str]:
    """The values of a column, few of them Python objects at a time."""
    for start in range(0, len(column), ROWS_PER_GROUP):
        yield from column.slice(start, ROWS_PER_GROUP).to_pylist()


def split_by_subject(
    rows: Sequence[CatalogueRow], fraction: float, seed: int
) -> tuple[list[CatalogueRow], list[CatalogueRow]]:
    """Catalogue rows of the training subjects and of the validation subjects."""
    held_out = held_out_subjects(rows, fraction, seed)
    training = [row for row in rows if row["subject_id"] not in held_out]
    return training, [row for row in rows if row["subject_id"] in held_out]
