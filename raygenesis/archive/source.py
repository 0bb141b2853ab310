"""The archive as a Ray Data source: whole scans at the coarse level, resampled to one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from raygenesis.archive.cells import DTYPE, encode
from raygenesis.archive.geometry import axis_weights, resample
from raygenesis.archive.intensity import limits, normalise
from raygenesis.archive.store import read_region
from raygenesis.config import IntensitySettings
from raygenesis.errors import ScanError

SCHEMA = pa.schema(
    [("number", pa.int64()), ("volume_id", pa.string()), ("cube", pa.binary()), ("failure", pa.string())]
)

Part = tuple[int, Sequence[Mapping[str, Any]]]


def parts_of(rows: Sequence[Mapping[str, Any]], rows_per_part: int) -> list[Part]:
    """Catalogue rows in parts: the number of the first row of each, and its rows."""
    return [(start, rows[start : start + rows_per_part]) for start in range(0, len(rows), rows_per_part)]


def read_coarse(
    volumes: Path, row: Mapping[str, Any], shape: Sequence[int], intensity: IntensitySettings
) -> NDArray[np.float32]:
    """The whole scan of a catalogue row, from its coarsest level, as float32 [z, y, x] in [0, 1] of `shape`.

    The field of view is stretched to the shape. Raises ScanError if a chunk is damaged.
    """
    level = len(row["levels"]) - 1
    voxels = read_region(volumes / f"{row['volume_id']}.ome.zarr", level, (slice(None),) * len(shape))
    # A coarse voxel at an odd end reaches beyond the scan: the extent is the scan's own.
    extents = [side / factor for side, factor in zip(row["shape"], row["levels"][level], strict=True)]
    weights = [
        axis_weights(num_in, num_out, 0.0, extent)[1]
        for num_in, num_out, extent in zip(voxels.shape, shape, extents, strict=True)
    ]
    return resample(normalise(voxels, *limits(row, intensity)), weights)


class CoarseSource(Datasource):
    """Rows `number`, `volume_id`, `cube` (a cell of `shape`) and `failure`.

    One read task, and so one block, per part: the number of its first row, and its catalogue rows. A damaged volume
    has an empty cube and says why in `failure`.
    """

    def __init__(
        self,
        volumes: Path,
        parts: Sequence[Part],
        shape: Sequence[int],
        intensity: IntensitySettings,
    ) -> None:
        super().__init__()
        self._volumes, self._parts, self._shape, self._intensity = volumes, parts, tuple(shape), intensity

    def estimate_inmemory_data_size(self) -> int:
        return sum(self._bytes(len(rows)) for _, rows in self._parts)

    def _bytes(self, num_rows: int) -> int:
        return num_rows * int(np.prod(self._shape)) * DTYPE.itemsize

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per block whatever the parallelism asked for: blocks are the units of resuming."""
        tasks = []
        for start, rows in self._parts:
            metadata = BlockMetadata(len(rows), self._bytes(len(rows)), input_files=None, exec_stats=None)
            tasks.append(ReadTask(self._reader(start, rows), metadata, SCHEMA, per_task_row_limit))
        return tasks

    def _reader(self, start: int, rows: Sequence[Mapping[str, Any]]) -> Callable[[], Iterator[pa.Table]]:
        volumes, shape, intensity = self._volumes, self._shape, self._intensity

        def read() -> Iterator[pa.Table]:
            out = []
            for number, row in enumerate(rows, start):
                try:
                    cube, failure = encode(read_coarse(volumes, row, shape, intensity)), ""
                except ScanError as error:
                    cube, failure = b"", str(error)
                out.append({"number": number, "volume_id": row["volume_id"], "cube": cube, "failure": failure})
            yield pa.Table.from_pylist(out, SCHEMA)

        return read
