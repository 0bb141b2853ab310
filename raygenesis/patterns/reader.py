"""Reading patterns: K, C and the split are predicates that leave out row groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from raygenesis.errors import WorkspaceError
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import part_path
from raygenesis.workspace import manifest_of

# What training needs of a row.
TRAINING_COLUMNS = ("pattern_id", "label", "reference", "coordinate", "rank", "volume_id", "cube")


def predicate(split: str | None = None, num_neighbours: int | None = None, num_coordinates: int | None = None) -> Any:
    """The rows of a split with `rank < num_neighbours` (training only) and `coordinate < num_coordinates`."""
    terms = []
    if split is not None:
        terms.append(pc.field("split") == split)
    if num_neighbours is not None and split != VALIDATION:
        within = pc.field("rank") < num_neighbours
        terms.append(within if split == TRAINING else within | (pc.field("split") == VALIDATION))
    if num_coordinates is not None:
        terms.append(pc.field("coordinate") < num_coordinates)
    expression = None
    for term in terms:
        expression = term if expression is None else expression & term
    return expression


def read_patterns(
    folder: Path, columns: Sequence[str] = PATTERN.names, where: Any = None
) -> pa.Table:
    """Rows of a finished store, in its order, with the columns and predicate asked for."""
    paths = [str(path) for path in _part_paths(folder)]
    return ds.dataset(paths, schema=PATTERN, format="parquet").to_table(columns=list(columns), filter=where)


def _check_part(path: Path) -> None:
    try:
        pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise WorkspaceError(
            f"{path} is damaged ({str(error).splitlines()[0]}): remove it and {path.parent / 'manifest.json'}, then "
            "run `raygenesis discover`"
        ) from None


class PatternSource(Datasource):
    """A pattern store for Ray Data: one read task per part, cells left encoded."""

    def __init__(self, folder: Path, columns: Sequence[str] = TRAINING_COLUMNS, where: Any = None) -> None:
        super().__init__()
        self._paths = _part_paths(folder)
        for path in self._paths:
            _check_part(path)
        self._columns, self._where = list(columns), where

    @property
    def num_parts(self) -> int:
        return len(self._paths)

    def estimate_inmemory_data_size(self) -> int:
        return sum(path.stat().st_size for path in self._paths)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        schema = pa.schema([PATTERN.field(name) for name in self._columns])
        return [
            ReadTask(
                self._reader(path),
                BlockMetadata(None, path.stat().st_size, input_files=[str(path)], exec_stats=None),
                schema,
                per_task_row_limit,
            )
            for path in self._paths
        ]

    def _reader(self, path: Path) -> Callable[[], Iterator[pa.Table]]:
        columns, where = self._columns, self._where

        def read() -> Iterator[pa.Table]:
            yield ds.dataset(str(path), schema=PATTERN, format="parquet").to_table(columns=columns, filter=where)

        return read


def _part_paths(folder: Path) -> list[Path]:
    """The parts of a finished store, in order."""
    num_parts = manifest_of(folder, "discover")["counts"]["parts"]
    return [part_path(folder, part) for part in range(num_parts)]
