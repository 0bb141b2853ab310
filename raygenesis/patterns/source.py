"""A pattern store as a Ray Data source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from raygenesis.patterns.reader import TRAINING_COLUMNS, part_paths, row_groups
from raygenesis.patterns.schema import PATTERN
from raygenesis.workspace.files import Place, parquet_dataset


class PatternSource(Datasource):
    """A pattern store for Ray Data: one read task per part of which anything is selected, cells left encoded.

    Raises WorkspaceError if a part is missing or its footer is damaged.
    """

    def __init__(
        self, folder: Place, columns: Sequence[str] = TRAINING_COLUMNS, where: pc.Expression | None = None
    ) -> None:
        super().__init__()
        paths = part_paths(folder)
        sizes = {path: sum(group.total_byte_size for group in row_groups(path, where)) for path in paths}
        # An empty selection has one empty block: Ray needs the columns.
        self._sizes = {path: size for path, size in sizes.items() if size} or dict.fromkeys(paths[:1], 0)
        self._columns, self._where = list(columns), where

    @property
    def num_parts(self) -> int:
        return len(self._sizes)

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the row groups that are read, all columns."""
        return sum(self._sizes.values())

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        schema = pa.schema([PATTERN.field(name) for name in self._columns])
        return [
            ReadTask(
                self._reader(path),
                BlockMetadata(None, size, input_files=(str(path),), exec_stats=None),
                schema,
                per_task_row_limit,
            )
            for path, size in self._sizes.items()
        ]

    def _reader(self, path: Place) -> Callable[[], Iterator[pa.Table]]:
        columns, where = self._columns, self._where

        def read() -> Iterator[pa.Table]:
            yield parquet_dataset([path], PATTERN).to_table(columns=columns, filter=where)

        return read
