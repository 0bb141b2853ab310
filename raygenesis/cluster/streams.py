"""Ray Data pipelines from parts to published parts: source, sink, progress, statistics and errors.

A part is the unit of resuming. One read task makes one block of it, whatever its size; the sink publishes the block
under the part's own name. Parts that are there are no longer read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray.data
from ray.data import Datasink, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.datasource import WriteResult
from ray.exceptions import RayError, RayTaskError

from raygenesis.cluster import joining
from raygenesis.cluster.fan_out import gave_up
from raygenesis.cluster.progress import Ticker, progress
from raygenesis.cluster.stream_statistics import OperatorStatistics, keep_statistics
from raygenesis.errors import RaygenesisError
from raygenesis.text.amounts import MIB

# What every task of a pipeline is given, alike so that reading, mapping and publishing are one: a worker or node that
# is lost costs another attempt. A block of 16 scans, each of which may take its worker along twice, gets through.
MAX_RETRIES = 40
RETRIED: dict[str, Any] = {"max_retries": MAX_RETRIES}

Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class SourcePart:
    """A part to be read. read: makes its table, in a task; num_rows, num_bytes: of that table, for Ray to plan with."""

    read: Callable[[], pa.Table]
    num_rows: int
    num_bytes: int

    def blocks(self) -> Iterator[pa.Table]:
        yield self.read()


class PartSource(Datasource):
    """Parts of one schema as Ray Data reads them: one read task, and so one block, per part."""

    def __init__(self, parts: Sequence[SourcePart], schema: pa.Schema) -> None:
        super().__init__()
        self._parts, self._schema = parts, schema

    @property
    def num_parts(self) -> int:
        return len(self._parts)

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self._parts)

    def estimate_inmemory_data_size(self) -> int:
        return sum(part.num_bytes for part in self._parts)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per part whatever the parallelism asked for: parts are the units of resuming."""
        return [
            ReadTask(
                part.blocks,
                BlockMetadata(part.num_rows, part.num_bytes, input_files=None, exec_stats=None),
                self._schema,
                per_task_row_limit,
            )
            for part in self._parts
        ]


def read_parts(source: PartSource) -> ray.data.Dataset:
    """A dataset of a source's parts, each of which stays one block; tasks that map them are given RETRIED as well."""
    joining.connect()
    rows = ray.data.read_datasource(source, override_num_blocks=source.num_parts, ray_remote_args=RETRIED)
    rows.context.target_max_block_size = None
    rows.context.raise_original_map_exception = True
    return rows


class PartSink(Datasink[list[Outcome]], Generic[Outcome]):
    """Publishes each block by a function of its table; `outcomes` has what this returned, in no order, at the end.

    publish: writes aside and renames, so that a task which is run again, since its worker or node was lost, does no
    harm.
    """

    def __init__(self, publish: Callable[[pa.Table], Outcome]) -> None:
        self._publish = publish
        self.outcomes: list[Outcome] = []

    def write(self, blocks: Any, ctx: Any) -> list[Outcome]:
        return [self._publish(block) for block in blocks if block.num_rows]

    def on_write_complete(self, write_result: WriteResult[list[Outcome]]) -> None:
        self.outcomes = [outcome for returned in write_result.write_returns for outcome in returned]


@dataclass(frozen=True)
class StreamProgress:
    """How the progress of a pipeline is shown: its stage, and how many `unit` all of its parts hold."""

    stage: str
    unit: str
    total: int
    num_parts: int


def write_parts(
    rows: ray.data.Dataset, publish: Callable[[pa.Table], Outcome], shown: StreamProgress, after_actors: bool = False
) -> list[Outcome]:
    """Run a pipeline whose blocks are parts, and publish each; returns what `publish` returned, in no order.

    after_actors: a pool of actors makes the blocks. It may have all cores, so that publishing takes none of its own,
    in one process a node; otherwise publishing is one task with reading and mapping. The first error of a task is
    raised, a RaygenesisError as itself; ClusterError if a task was lost again and again.
    """
    sink = PartSink(publish)
    with progress(shown.stage, shown.total, shown.unit) as ticker:
        rows.context.custom_execution_callback_classes.append(_watching(ticker, shown))
        try:
            if after_actors:
                beside = {"num_cpus": 0, **RETRIED}
                rows.write_datasink(sink, ray_remote_args=beside, concurrency=len(joining.logical_nodes()))
            else:
                rows.write_datasink(sink, ray_remote_args=RETRIED)
        except RayTaskError as error:
            if isinstance(error.cause, RaygenesisError):
                # Ray Data adds lines of its own to a message; ours are of one line.
                raise type(error.cause)(str(error.cause).splitlines()[0]) from None
            raise
        except RayError as error:
            raise gave_up(error, f"a task of {shown.stage}", MAX_RETRIES) from error
    return sink.outcomes


def _watching(ticker: Ticker, shown: StreamProgress) -> type:
    """A class that Ray Data makes one of for an execution, and calls as the execution goes on."""

    class Watch:
        def __init__(self) -> None:
            self._last = time.perf_counter()
            self._done = 0
            self._times: dict[str, list[float]] = {}  # working, starved, held up: by operator

        def before_execution_starts(self, executor: Any) -> None:
            self._last = time.perf_counter()

        def on_execution_step(self, executor: Any) -> None:
            now = time.perf_counter()
            for operator, state in _operators(executor):
                times = self._times.setdefault(operator.name, [0.0, 0.0, 0.0])
                is_fed = state.total_enqueued_input_blocks() > 0
                times[0 if operator.num_active_tasks() else 2 if is_fed else 1] += now - self._last
            self._last = now
            self._show(operator.metrics.num_tasks_finished)

        def _show(self, num_finished: int) -> None:
            done = round(shown.total * min(num_finished / shown.num_parts, 1.0))
            if done > self._done:
                ticker.advance(done - self._done)
                self._done = done

        def after_execution_succeeds(self, executor: Any) -> None:
            for operator, _ in _operators(executor):
                working, starved, held_up = self._times.get(operator.name, (0.0, 0.0, 0.0))
                metrics = operator.metrics
                keep_statistics(
                    OperatorStatistics(
                        stage=shown.stage, operator=operator.name, num_tasks=metrics.num_tasks_finished,
                        num_rows=metrics.rows_task_outputs_generated,
                        mib=round(metrics.bytes_task_outputs_generated / MIB, 3),
                        task_seconds=round(metrics.task_worker_completion_time_s, 3),
                        working_seconds=round(working, 3), starved_seconds=round(starved, 3),
                        held_up_seconds=round(held_up, 3),
                    )
                )  # fmt: skip
            self._show(shown.num_parts)

        def after_execution_fails(self, executor: Any, error: Exception) -> None:
            pass

    return Watch


def _operators(executor: Any) -> Iterator[tuple[Any, Any]]:
    """The operators of an execution that run tasks, in order, each with its state."""
    operators = list(executor._topology.items())
    yield from operators[1:]  # the first holds the read tasks
