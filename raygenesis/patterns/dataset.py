"""A pattern store as a torch map-style dataset, without Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raygenesis.archive.cells import decode
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.reader import damaged, made_by, part_paths, predicate, row_groups, store_manifest
from raygenesis.patterns.schema import TRAINING, UNLABELLED, VALIDATION
from raygenesis.patterns.writer import part_path
from raygenesis.workspace import Workspace, place

PLACE_COLUMNS = ("pattern_id", "reference", "coordinate", "rank", "scale", "split")

# Of each process: parts that stay open, with their footers, and row groups whose cells stay in memory, encoded.
OPEN_PARTS, CACHED_GROUPS = 64, 8

CellReader = Callable[[int, int], pa.ChunkedArray]


class PatternDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The patterns of one split of a finished store, in its order: neighbouring numbers share reads.

    location: a workspace, or the folder of its pattern store, or of its random crops. num_neighbours (K),
    num_coordinates (C) and scales (their numbers, from 0) select; all when None. K counts training patients, and so
    selects nothing of "validation". Of random crops K counts training scans, and C the crops of each.

    `dataset[i]` is {"cube": float32 tensor [1, z, y, x] (2D: [1, y, x]) in [0, 1], "label": int, "pattern_id": int},
    where label = reference × C + coordinate with the C in use, below `num_classes`; -1 of random crops, whose
    `num_classes` is 0. `labels` and `pattern_ids` are int64 arrays of all of them. Only cells asked for are read; each
    process opens the files anew. One thread at a time.

    Raises WorkspaceError if the store is not there or a part is damaged, SettingsError if it holds no such selection.
    """

    def __init__(
        self,
        location: str | Path,
        split: str = TRAINING,
        num_neighbours: int | None = None,
        num_coordinates: int | None = None,
        scales: Sequence[int] | None = None,
    ) -> None:
        self._folder = _store_at(location)
        manifest = store_manifest(self._folder)
        if "cube_shape" not in manifest:
            raise WorkspaceError(
                f"{self._folder} is no pattern store: give a workspace or its patterns folder, or its crops folder"
            )
        _check(self._folder, manifest, split, num_neighbours, num_coordinates, scales)
        counts = manifest["counts"]
        self._shape = tuple(manifest["cube_shape"])
        num_coordinates = num_coordinates or counts["coordinates"]
        self.num_classes = counts["references"] * num_coordinates
        where = predicate(split, num_neighbours, num_coordinates, scales)
        places = pa.concat_tables(
            _places(path, part, where) for part, path in enumerate(part_paths(self._folder))
        )
        columns = {name: places[name].to_numpy() for name in places.column_names if name != "split"}
        self.pattern_ids = columns["pattern_id"]
        self.labels = columns["reference"].astype(np.int64) * num_coordinates + columns["coordinate"]
        self.labels[columns["reference"] == UNLABELLED] = UNLABELLED
        self._parts, self._groups, self._rows = (columns[name] for name in ("part", "group", "row"))
        self._read: CellReader | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, group, row = (int(column[index]) for column in (self._parts, self._groups, self._rows))
        if self._read is None:
            self._read = _cell_reader(self._folder)
        try:
            cube = decode(memoryview(self._read(part, group)[row].as_buffer()), self._shape)
        except (ValueError, RuntimeError, OSError) as error:
            raise damaged(part_path(self._folder, part), error) from None
        return {
            "cube": torch.from_numpy(cube)[None],
            "label": int(self.labels[index]),
            "pattern_id": int(self.pattern_ids[index]),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Without what this process holds open."""
        return self.__dict__ | {"_read": None}


def _store_at(location: str | Path) -> Path:
    """The folder of the store of a workspace, or the location itself."""
    below = Workspace(place(location)).patterns
    return below if below.is_dir() else below.parent


def _check(
    folder: Path,
    manifest: Mapping[str, Any],
    split: str,
    num_neighbours: int | None,
    num_coordinates: int | None,
    scales: Sequence[int] | None,
) -> None:
    """Raise SettingsError if the store does not hold what is asked for."""
    if split not in (TRAINING, VALIDATION):
        raise SettingsError(f"split={split!r} is unknown: give {TRAINING!r} or {VALIDATION!r}")
    counts = manifest["counts"]
    more = {key: f"another discovery.{key}" for key in ("num_neighbours", "num_coordinates")}
    if not counts["references"]:
        more = {"num_neighbours": "more scans", "num_coordinates": "another discovery.num_crops"}
    for key, asked in (("num_neighbours", num_neighbours), ("num_coordinates", num_coordinates)):
        held = counts[key.removeprefix("num_")]
        if asked is not None and not 1 <= asked <= held:
            raise SettingsError(
                f"{key}={asked}: the pattern store {folder} holds {held}: give 1 to {held}, or {made_by(folder)} again "
                f"with {more[key]}"
            )
    num_scales = len(manifest["settings"]["discovery"]["scales"])
    if scales is not None and not (len(scales) and set(scales) <= set(range(num_scales))):
        raise SettingsError(
            f"scales={list(scales)}: the pattern store {folder} holds the scales {list(range(num_scales))}: give one "
            "or more of them"
        )


def _places(path: Path, part: int, where: Any) -> pa.Table:
    """Ids, reference and coordinate of the selected rows of a part, and where in it their cells are."""
    groups = row_groups(path, where)
    try:
        table = pq.ParquetFile(path).read_row_groups([group.id for group in groups], columns=list(PLACE_COLUMNS))
    except (ValueError, OSError) as error:
        raise damaged(path, error) from None
    sizes = np.array([group.num_rows for group in groups], np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    numbers = {
        "part": np.full(len(starts), part, np.int32),
        "group": np.repeat(np.array([group.id for group in groups], np.int32), sizes),
        "row": (np.arange(len(starts)) - starts).astype(np.int32),
    }
    for name, column in numbers.items():
        table = table.append_column(name, pa.array(column))
    return table.filter(where)


def _cell_reader(folder: Path) -> CellReader:
    """A function of part and row group → the group's cells. It keeps some files open and some cells in memory."""

    @functools.lru_cache(OPEN_PARTS)
    def open_part(part: int) -> pq.ParquetFile:
        return pq.ParquetFile(part_path(folder, part))

    @functools.lru_cache(CACHED_GROUPS)
    def read(part: int, group: int) -> pa.ChunkedArray:
        return open_part(part).read_row_group(group, columns=["cube"], use_threads=False)["cube"]

    return read
