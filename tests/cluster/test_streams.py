"""Ray Data pipelines from parts to published parts."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from raygenesis.cluster import streams as module
from raygenesis.cluster.job import recorded
from raygenesis.cluster.job_record import jobs_folder
from raygenesis.cluster.stream_statistics import kept_statistics
from raygenesis.cluster.streams import RETRIED, PartSource, SourcePart, StreamProgress, read_parts, write_parts
from raygenesis.errors import ClusterError, WorkspaceError
from raygenesis.workspace.files import write_table
from raygenesis.workspace.workspace import Workspace

SCHEMA = pa.schema([("number", pa.int64())])
NUM_PARTS, NUM_ROWS = 5, 7


def numbers(first: int) -> pa.Table:
    return pa.table({"number": list(range(first, first + NUM_ROWS))}, SCHEMA)


def source() -> PartSource:
    """Parts of consecutive numbers, the third of which is empty, as one that is there already."""
    firsts = range(0, NUM_PARTS * NUM_ROWS, NUM_ROWS)
    parts = [SourcePart(functools.partial(numbers, first), NUM_ROWS, NUM_ROWS * 8) for first in firsts]
    parts[2] = SourcePart(SCHEMA.empty_table, NUM_ROWS, NUM_ROWS * 8)
    return PartSource(parts, SCHEMA)


def publish(part: pa.Table, folder: Path) -> int:
    first = part["number"][0].as_py()
    write_table(folder / f"part-{first:03d}.parquet", part)
    return first


class Doubler:
    """An actor."""

    def __call__(self, part: pa.Table) -> pa.Table:
        return doubled(part)


def doubled(part: pa.Table) -> pa.Table:
    return pa.table({"number": pa.compute.multiply(part["number"], 2)}, SCHEMA)


SHOWN = StreamProgress("doubling", "numbers", NUM_PARTS * NUM_ROWS, NUM_PARTS)
FIRSTS = [0, 14, 42, 56]  # of the doubled parts that are not empty


@pytest.mark.parametrize("has_actors", [False, True])
def test_each_part_becomes_a_part_and_an_empty_one_none(ray_cluster: None, tmp_path: Path, has_actors: bool) -> None:
    import ray.data

    rows = read_parts(source())
    if has_actors:
        compute = ray.data.ActorPoolStrategy(size=1)
        rows = rows.map_batches(Doubler, batch_size=None, batch_format="pyarrow", compute=compute)
    else:
        rows = rows.map_batches(doubled, batch_size=None, batch_format="pyarrow", **RETRIED)
    workspace = Workspace.open(tmp_path)
    with recorded("doubling", workspace):
        returned = write_parts(rows, functools.partial(publish, folder=tmp_path), SHOWN, after_actors=has_actors)
    assert sorted(returned) == FIRSTS
    assert sorted(path.name for path in tmp_path.glob("part-*")) == [f"part-{first:03d}.parquet" for first in FIRSTS]
    # Reading, mapping and publishing are one operator, where no actors stand between.
    names = ["ReadPartSource->MapBatches(doubled)->Write"]
    if has_actors:
        names = ["ReadPartSource", "MapBatches(Doubler)", "Write"]
    operators = [one for one in kept_statistics() if one.stage == "doubling"][-len(names) :]
    assert [one.operator for one in operators] == names
    assert operators[0].num_tasks == NUM_PARTS and all(one.working_seconds > 0 for one in operators)
    (path,) = jobs_folder(workspace).glob("*.json")
    job = json.loads(path.read_text())
    assert [one["operator"] for one in job["operators"]][-1] == operators[-1].operator
    assert job["stages"][-1]["done"] == job["stages"][-1]["total"] == NUM_PARTS * NUM_ROWS


def test_a_mistake_in_a_task_is_raised_as_itself(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WorkspaceError, match=r"part-0\d\d\.parquet cannot be written: Not a directory$"):
        write_parts(read_parts(source()), functools.partial(publish, folder=tmp_path / "file"), SHOWN)


def test_a_mistake_in_what_maps_is_raised_as_itself(ray_cluster: None) -> None:
    def refuse(part: pa.Table) -> pa.Table:
        raise WorkspaceError("the third shelf is full")

    rows = read_parts(source()).map_batches(refuse, batch_size=None, batch_format="pyarrow")
    with pytest.raises(WorkspaceError, match=r"^the third shelf is full$"):
        write_parts(rows, lambda part: None, SHOWN)


def test_a_part_is_one_block_whatever_its_size(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data

    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 64)
    large = SourcePart(lambda: pa.table({"number": list(range(1000))}, SCHEMA), 1000, 8000)
    rows = read_parts(PartSource([large], SCHEMA)).map_batches(doubled, batch_size=None, batch_format="pyarrow")
    assert write_parts(rows, lambda part: part.num_rows, StreamProgress("doubling", "numbers", 1000, 1)) == [1000]


def test_a_task_that_ends_its_worker_each_time_ends_the_pipeline_in_words(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRIED", {"max_retries": 1})
    fatal = {"batch_size": None, "batch_format": "pyarrow", "max_retries": 1}
    rows = read_parts(source()).map_batches(lambda part: os._exit(7), **fatal)
    with pytest.raises(ClusterError, match=r"^the cluster lost a task of doubling more than 40 times \("):
        write_parts(rows, lambda part: None, SHOWN)
