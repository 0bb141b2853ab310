"""The archive as a Ray Data source: volumes as they are stored, or whole scans resampled to one shape."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from raygenesis.archive.catalogue import CATALOGUE, CatalogueRow, CatalogueRows, read_columns
from raygenesis.archive.store import level_shape, open_level, read_array, volume_folder
from raygenesis.archive.volume_identity import volume_fingerprint
from raygenesis.cluster.streams import PartSource, SourcePart, read_parts
from raygenesis.errors import ScanError, SettingsError
from raygenesis.workspace.files import Place
from raygenesis.workspace.workspace import Workspace

# Blocks of volumes hold about so many bytes, and are at least so many where there are volumes enough.
BLOCK_BYTES = 64 * 2**20
MIN_BLOCKS = 64

Part = tuple[int, Sequence[CatalogueRow] | CatalogueRows]
Item = TypeVar("Item")


def parts_of(rows: Sequence[Item], rows_per_part: int) -> list[tuple[int, Sequence[Item]]]:
    """Catalogue rows, or volume ids, in parts: the number of the first of each, and these."""
    return [(start, rows[start : start + rows_per_part]) for start in range(0, len(rows), rows_per_part)]


# Catalogue rows → for each, in order, the columns of a schema, or why not; beside `number`, `volume_id`, `failure` and
# the volume's `fingerprint`, where the schema has one.
ReadRows = Callable[[Sequence[CatalogueRow]], Iterable[dict[str, Any] | ScanError]]


def catalogue_source(parts: Sequence[Part], sizes: Sequence[int], schema: pa.Schema, read_rows: ReadRows) -> PartSource:
    """Parts of catalogue rows, each of which is read as a table of `schema` with a row a volume.

    parts: rows may be read late, in the read task alone (`CatalogueRows`).
    sizes: bytes in memory of what `read_rows` makes of each part, so that Ray can plan.
    read_rows: is given a part's rows at once. Of a ScanError `failure` has the reason, and the columns are null.
    """
    source_parts = [
        SourcePart(functools.partial(_read_part, start, rows, schema, read_rows), len(rows), size)
        for (start, rows), size in zip(parts, sizes, strict=True)
    ]
    return PartSource(source_parts, schema)


def _read_part(start: int, rows: Iterable[CatalogueRow], schema: pa.Schema, read_rows: ReadRows) -> pa.Table:
    there, out = list(rows), []
    for number, (row, found) in enumerate(zip(there, read_rows(there), strict=True), start):
        names = {"number": number, "volume_id": row["volume_id"], "fingerprint": volume_fingerprint(row)}
        if isinstance(found, ScanError):
            out.append(dict.fromkeys(schema.names) | names | {"failure": str(found)})
        else:
            out.append(names | found | {"failure": ""})
    return pa.Table.from_pylist(out, schema)


def read_archive(
    workspace: str | Path | Workspace,
    columns: Sequence[str] = (),
    level: int = 0,
    region_mm: tuple[Sequence[float], Sequence[float]] | None = None,
    volume_ids: Sequence[str] | None = None,
) -> ray.data.Dataset:
    """The archive of a workspace as a Ray Dataset, one row a volume.

    Args:
        columns: of the catalogue, beside `number` (in the order of volume ids, in which rows need not come),
            `volume_id`, `failure` (why a damaged volume has no voxels) and the voxels as they are stored: `voxels`
            (bytes, C order), `voxels_shape` (c z y x, z y x or y x), `voxels_dtype`; `voxels_of(row)` makes an array
            of them.
        level: of the pyramid, 0 the finest, -1 the coarsest; volumes of fewer levels give their coarsest.
        region_mm: origin and extent along z y x (2D: y x) in mm from the scan's corner; the whole scan when None.
            Voxels are read that lie in it at least in part.
        volume_ids: of the volumes; all when None.

    Raises WorkspaceError if there is no archive, SettingsError for a column or an id that it does not have.
    """
    archive = workspace if isinstance(workspace, Workspace) else Workspace.existing(workspace)
    unknown = sorted(set(columns) - set(CATALOGUE.names))
    if unknown:
        raise SettingsError(f"columns: the catalogue has no {unknown[0]!r}; it has {', '.join(CATALOGUE.names)}")
    there = read_columns(archive.catalog, ["volume_id"], volume_ids)["volume_id"].to_pylist()
    missing = sorted(set(volume_ids or ()) - set(there))
    if missing:
        raise SettingsError(f"volume_ids: the archive has no volume {missing[0]!r}")
    return read_parts(volume_rows(archive.volumes, CatalogueRows(archive.catalog, there), columns, level, region_mm))


def volume_rows(
    volumes: Place,
    rows: Sequence[CatalogueRow] | CatalogueRows,
    columns: Sequence[str] = (),
    level: int = 0,
    region_mm: tuple[Sequence[float], Sequence[float]] | None = None,
) -> PartSource:
    """The source behind `read_archive`: parts of about BLOCK_BYTES each, however large the volumes."""

    def bytes_of(row: CatalogueRow) -> int:
        shape = [part.stop - part.start for part in _region(row, level, region_mm)]
        return int(np.prod(shape)) * row["num_channels"] * np.dtype(row["dtype"]).itemsize

    def read_row(row: CatalogueRow) -> dict[str, Any]:
        array = open_level(volume_folder(volumes, row["volume_id"]), _level(row, level))
        channels = [slice(None)] * (array.ndim - len(row["shape"]))
        (voxels,) = read_array(array, [channels + list(_region(row, level, region_mm))], row["volume_id"])
        chosen = {name: row[name] for name in columns}  # type: ignore[literal-required]
        return chosen | {"voxels": voxels.tobytes(), "voxels_shape": voxels.shape, "voxels_dtype": row["dtype"]}

    def read_rows(rows: Sequence[CatalogueRow]) -> Iterator[dict[str, Any] | ScanError]:
        for row in rows:  # one after another: volumes are large
            try:
                yield read_row(row)
            except ScanError as error:
                yield error

    schema = pa.schema(
        [("number", pa.int64()), ("volume_id", pa.string())]
        + [CATALOGUE.field(name) for name in columns if name != "volume_id"]
        + [("voxels", pa.large_binary()), ("voxels_shape", pa.list_(pa.int32())), ("voxels_dtype", pa.string())]
        + [("failure", pa.string())]
    )
    return catalogue_source(*_even_parts(rows, bytes_of), schema, read_rows)


def voxels_of(row: Mapping[str, Any]) -> NDArray[Any]:
    """The voxels of a row of `read_archive`, read-only."""
    return np.frombuffer(row["voxels"], row["voxels_dtype"]).reshape(row["voxels_shape"])


def _level(row: CatalogueRow, level: int) -> int:
    return min(level, len(row["levels"]) - 1) % len(row["levels"])


def _region(
    row: CatalogueRow, level: int, region_mm: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[slice, ...]:
    """Voxels of a level that a region in mm touches."""
    factors, sides = row["levels"][_level(row, level)], level_shape(row, _level(row, level))
    if region_mm is None:
        return tuple(slice(0, side) for side in sides)
    region = []
    for side, factor, fine, origin, extent in zip(sides, factors, row["spacing_mm"], *region_mm, strict=True):
        step = fine * factor
        first = min(max(math.floor(origin / step + 1e-6), 0), side)
        region.append(slice(first, max(first, min(math.ceil((origin + extent) / step - 1e-6), side))))
    return tuple(region)


def _even_parts(
    rows: Sequence[CatalogueRow] | CatalogueRows, bytes_of: Callable[[CatalogueRow], int]
) -> tuple[list[Part], list[int]]:
    """Parts of consecutive rows of about BLOCK_BYTES, or less where that leaves workers idle, and the bytes of each."""
    sizes = [bytes_of(row) for row in rows]
    most = min(BLOCK_BYTES, max(sum(sizes) // MIN_BLOCKS, 1))
    starts, filled = [], most + 1  # the first row starts the first part even where it has no bytes
    for number, size in enumerate(sizes):
        if filled + size > most:
            starts.append(number)
            filled = 0
        filled += size
    spans = list(itertools.pairwise([*starts, len(rows)]))
    return [(first, rows[first:last]) for first, last in spans], [sum(sizes[first:last]) for first, last in spans]
