"""The tables of a run: `metrics.parquet`, a row an epoch, and `steps/`, a row a step in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raygenesis.errors import WorkspaceError
from raygenesis.training.records import EpochRow, StepRow
from raygenesis.workspace.files import Place, write_table


def read_metrics(folder: Place) -> list[EpochRow]:
    """Rows of `metrics.parquet`, one an epoch; none if training has not ended its first epoch.

    Raises WorkspaceError if it is damaged.
    """
    path = folder / "metrics.parquet"
    try:  # as bytes: pyarrow opens a file by name twice, and training may replace it in between
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        return pq.read_table(pa.BufferReader(content)).to_pylist()
    except pa.ArrowInvalid:
        raise WorkspaceError(
            f"{path} is damaged: restore it from a copy, or remove {folder} to make it again"
        ) from None


def write_metrics(folder: Place, history: Sequence[EpochRow]) -> None:
    """Publish `metrics.parquet`."""
    write_table(folder / "metrics.parquet", _as_table(history))


def write_steps(folder: Place, rows: Sequence[StepRow]) -> None:
    """Publish the rows of consecutive steps as a part."""
    if rows:
        (folder / "steps").mkdir(parents=True, exist_ok=True)
        write_table(_part(folder, rows[0]["step"]), _as_table(rows))


def forget_steps(folder: Place, step: int) -> None:
    """Remove the parts of this step and later ones: training goes on from before it."""
    for path in (folder / "steps").glob("part-*.parquet"):
        if path.name >= _part(folder, step).name:
            path.unlink()


def _part(folder: Place, step: int) -> Place:
    return folder / "steps" / f"part-{step:09d}.parquet"


def _as_table(rows: Sequence[StepRow] | Sequence[EpochRow]) -> pa.Table:
    """A figure that only some rows have is null in the others."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in names}
    return pa.table(columns)
