"""A pattern store as a torch map-style dataset, without Ray."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.cell_reader import CellReader, cell_reader, locate_cells
from raygenesis.patterns.cells import decode
from raygenesis.patterns.reader import damaged, predicate, store_manifest, verb_of
from raygenesis.patterns.schema import TRAINING, UNLABELLED, VALIDATION
from raygenesis.patterns.writer import part_path
from raygenesis.workspace.files import Place, as_place, read_json
from raygenesis.workspace.manifest import StoreManifest
from raygenesis.workspace.manifest_files import MANIFEST
from raygenesis.workspace.workspace import Workspace

CACHED_GROUPS = 8  # row groups whose cells stay in memory, encoded
PLACE_COLUMNS = ("pattern_id", "reference", "coordinate")


class PatternItem(TypedDict):
    """One pattern as torch takes it; see `PatternDataset`."""

    cube: torch.Tensor
    label: int
    pattern_id: int


class PatternDataset(torch.utils.data.Dataset[PatternItem]):
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
        location: str | Place,
        split: str = TRAINING,
        num_neighbours: int | None = None,
        num_coordinates: int | None = None,
        scales: Sequence[int] | None = None,
    ) -> None:
        self._folder = _store_at(location)
        manifest = _manifest_in(self._folder)
        _check(self._folder, manifest, split, num_neighbours, num_coordinates, scales)
        counts = manifest.counts
        self._shape = manifest.cube_shape
        num_coordinates = num_coordinates or counts.coordinates
        self.num_classes = counts.references * num_coordinates
        where = predicate(split, num_neighbours, num_coordinates, scales)
        table = locate_cells(self._folder, where, PLACE_COLUMNS)
        columns = {name: table[name].to_numpy() for name in table.column_names}
        self.pattern_ids = columns["pattern_id"]
        self.labels = columns["reference"].astype(np.int64) * num_coordinates + columns["coordinate"]
        self.labels[columns["reference"] == UNLABELLED] = UNLABELLED
        self._parts, self._groups, self._rows = (columns[name] for name in ("part", "group", "row"))
        self._read: CellReader | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> PatternItem:
        part, group, row = (int(column[index]) for column in (self._parts, self._groups, self._rows))
        if self._read is None:
            self._read = functools.lru_cache(CACHED_GROUPS)(cell_reader(self._folder))
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


def _store_at(location: str | Place) -> Place:
    """The folder of the store of a workspace, or the location itself."""
    below = Workspace(as_place(location)).patterns
    return below if below.is_dir() else below.parent


def _manifest_in(folder: Place) -> StoreManifest:
    """The manifest of a store. Raises WorkspaceError, of an artifact of another kind saying that it is none."""
    try:
        return store_manifest(folder)
    except WorkspaceError:
        if "cube_shape" in (read_json(folder / MANIFEST) or {"cube_shape": None}):
            raise
    raise WorkspaceError(f"{folder} is no pattern store: give a workspace or its patterns folder, or its crops folder")


def _check(
    folder: Place,
    manifest: StoreManifest,
    split: str,
    num_neighbours: int | None,
    num_coordinates: int | None,
    scales: Sequence[int] | None,
) -> None:
    """Raise SettingsError if the store does not hold what is asked for."""
    if split not in (TRAINING, VALIDATION):
        raise SettingsError(f"split={split!r} is unknown: give {TRAINING!r} or {VALIDATION!r}")
    counts = manifest.counts
    more = {key: f"another discovery.{key}" for key in ("num_neighbours", "num_coordinates")}
    if not counts.references:
        more = {"num_neighbours": "more scans", "num_coordinates": "another discovery.num_crops"}
    for key, asked in (("num_neighbours", num_neighbours), ("num_coordinates", num_coordinates)):
        held = counts.of(key)
        if asked is not None and not 1 <= asked <= held:
            raise SettingsError(
                f"{key}={asked}: the pattern store {folder} holds {held}: give 1 to {held}, or {verb_of(folder)} again "
                f"with {more[key]}"
            )
    num_scales = len(manifest.settings["discovery"]["scales"])
    if scales is not None and not (len(scales) and set(scales) <= set(range(num_scales))):
        raise SettingsError(
            f"scales={list(scales)}: the pattern store {folder} holds the scales {list(range(num_scales))}: give one "
            "or more of them"
        )
