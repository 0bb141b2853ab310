"""Tasks side by side: one for each item, as many at a time as the cluster has room for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from raygenesis.cluster.joining import connect
from raygenesis.errors import ClusterError, RaygenesisError

MOST_LOSSES = 20  # of a task's node, before the task is given up

# For processes that train: each step takes and frees the same large tensors. By itself glibc would give them back to
# the system each time and have every page made anew, which can cost a step on a CPU a third of its time.
TRAINING_ENVIRONMENT = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32),
    }
}  # fmt: skip


def is_lost(node_id: str) -> bool:
    """Whether a node of the cluster is not there any more."""
    return not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def result_of(reference: ray.ObjectRef[Any]) -> Any:
    """A task's answer; a user's mistake found there is one sentence here too."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaygenesisError):
            raise error.cause from None
        raise
    except RayError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(
            f"the cluster lost a task more than {MOST_LOSSES} times ({reason}): run the same command again"
        ) from error


def each(function: Callable[..., Any], items: Iterable[Any], *shared: Any) -> Iterator[Any]:
    """Call `function(item, *shared)` in a task of its own for every item; yields results as they are ready.

    A task whose worker dies is run again; a mistake that a user can put right is raised as itself.
    """
    connect()
    task, waiting = ray.remote(max_retries=MOST_LOSSES)(function), iter(items)
    shared = tuple(ray.put(value) for value in shared)
    running: list[ray.ObjectRef[Any]] = []
    try:
        while True:
            most = 4 * int(ray.cluster_resources().get("CPU", 1))  # nodes may have come
            running += [task.remote(item, *shared) for item in itertools.islice(waiting, max(most - len(running), 0))]
            if not running:
                return
            (done,), running = ray.wait(running)
            yield result_of(done)
    finally:
        # Nothing may still be writing when the caller has gone.
        for unfinished in running:
            ray.cancel(unfinished)
        for unfinished in running:
            with suppress(RayError):
                ray.get(unfinished)
