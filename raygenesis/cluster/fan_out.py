"""The package's one loop over Ray tasks: a task for each item, as many at a time as the cluster has room for.

A sweep's trials alone do not run in it: Ray Tune starts them, compares them as they train, and stops some early.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from raygenesis.cluster.joining import connect
from raygenesis.errors import ClusterError, RaygenesisError, reason_of

MAX_RETRIES = 20  # of a task's worker or node, before the task is given up
TASKS_PER_CPU = 4  # running or waiting

# For processes that train: each step takes and frees the same large tensors. By itself glibc would give them back to
# the system each time and have every page made anew, which can cost a step on a CPU a third of its time.
TRAINING_ENVIRONMENT = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32),
    }
}  # fmt: skip

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_queued() -> int:
    """How many tasks of one CPU to have running or waiting in the cluster as it is now."""
    return TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1))


@dataclass(frozen=True)
class TaskOptions:
    """How the tasks of a fan-out run.

    num_cpus, num_gpus: what each needs of one node. runtime_env: the processes' environment, as Ray takes it.
    max_tasks: how many tasks to have running or waiting at once; it is called whenever a task ends, as nodes may have
    come. stores_first: the function returns a pair, of which the first stays in Ray's object store: the result holds a
    reference to it instead.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    max_tasks: Callable[[], int] = num_queued
    stores_first: bool = False


@dataclass(frozen=True)
class TaskOutcome(Generic[Item, Result]):
    """What became of an item's task: `result()` returns what the function returned, or raises `error`."""

    item: Item
    error: RayError | RaygenesisError | None
    _returned: Result | None = None

    def result(self) -> Result:
        if self.error is not None:
            raise self.error
        return self._returned  # type: ignore[return-value] # without an error it is the function's


def is_lost(node_id: str) -> bool:
    """Whether a node of the cluster is not there any more."""
    return not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def gave_up(error: RayError, task: str, num_retries: int) -> ClusterError:
    """What to raise for a task that was lost more often than it is run again."""
    return ClusterError(
        f"the cluster lost {task} more than {num_retries} times ({reason_of(error)}): run the same command again"
    )


def _result_of(reference: ray.ObjectRef[Any]) -> Any:
    """What a task returned; a user's mistake that was found there is raised as itself."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaygenesisError):
            raise error.cause from None
        raise
    except RayError as error:
        raise gave_up(error, "a task", MAX_RETRIES) from error


def each(
    function: Callable[..., Result], items: Iterable[Any], *shared: Any, options: TaskOptions = TaskOptions()
) -> Iterator[Result]:
    """Call `function(item, *shared)` in a task of its own for every item; yields results as they are ready.

    A task whose worker dies is run again. The first error of a task is raised, a RaygenesisError as itself.
    """
    with closing(outcomes(function, items, *shared, options=options)) as ended:
        for outcome in ended:
            yield outcome.result()


def in_a_task(function: Callable[..., Result], item: Any, *shared: Any, options: TaskOptions = TaskOptions()) -> Result:
    """Call `function(item, *shared)` in a task, such as one that parses what strangers wrote; errors as of `each`."""
    (result,) = each(function, [item], *shared, options=options)
    return result


def outcomes(
    function: Callable[..., Result], items: Iterable[Item], *shared: Any, options: TaskOptions = TaskOptions()
) -> Generator[TaskOutcome[Item, Result]]:
    """As `each`, but yields every item with its result or its error, and goes on when a task fails.

    An item is taken from the iterator only when there is room for its task, after the caller has seen the outcomes
    before: an iterator may choose the next item by them.
    """
    connect()
    task: Any = ray.remote(
        num_cpus=options.num_cpus, num_gpus=options.num_gpus, max_retries=MAX_RETRIES,
        runtime_env=dict(options.runtime_env), num_returns=2 if options.stores_first else 1,
    )(function)  # fmt: skip
    waiting = iter(items)
    shared = tuple(ray.put(value) for value in shared)
    # By the reference that a task's end makes ready: its item and, where the first of a pair is stored, that one's.
    running: dict[ray.ObjectRef[Any], tuple[Item, ray.ObjectRef[Any] | None]] = {}
    try:
        while True:
            for item in itertools.islice(waiting, max(options.max_tasks() - len(running), 0)):
                references = task.remote(item, *shared)
                stored, ready = references if options.stores_first else (None, references)
                running[ready] = item, stored
            if not running:
                return
            (done,), _ = ray.wait(list(running))
            item, stored = running.pop(done)
            try:
                returned: Any = _result_of(done)
            except (RayError, RaygenesisError) as error:
                yield TaskOutcome(item, error)
            else:
                if options.stores_first:
                    returned = stored, returned
                yield TaskOutcome(item, None, returned)
    finally:
        # Nothing may still be writing when the caller has gone.
        for unfinished in running:
            ray.cancel(unfinished)
        for unfinished in running:
            with suppress(RayError):
                ray.get(unfinished)
