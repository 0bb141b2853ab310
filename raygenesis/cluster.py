"""Starting or joining Ray with the settings that this pipeline needs."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from raygenesis.errors import RaygenesisError
from raygenesis.machine import num_cores

# Every live Ray Data operator, actor pool and train worker holds a logical CPU of its own; with fewer than this
# a pipeline of several operators waits for ever.
MIN_LOGICAL_CPUS = 4

# For processes that train: each step takes and frees the same large tensors. By itself glibc would give them back to
# the system each time and have every page made anew, which can cost a step on a CPU a third of its time.
TRAINING_ENVIRONMENT = {
    "env_vars": {
        "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32),
    }
}  # fmt: skip


def connect() -> None:
    """Join the cluster that `RAY_ADDRESS` names (set inside `ray job submit`), else start Ray on this machine.

    Workers' output stays in Ray's own logs: stages say what users need to know.
    """
    if ray.is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    else:
        ray.init(
            address="local",
            num_cpus=max(MIN_LOGICAL_CPUS, num_cores()),
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    _quieten_ray_data()


def _quieten_ray_data() -> None:
    """Our stages show their own progress; Ray Data's bars would write over it."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def threads_per_worker(num_workers: int) -> int:
    """Threads for one of `num_workers` training processes on a node (Ray sets OMP_NUM_THREADS=1 in its workers)."""
    return max(1, num_cores() // num_workers)


def room_for(num_cpus: float, num_gpus: float) -> int:
    """How many tasks that need so much of one node each the whole cluster can ever run at once; 0: none.

    On this machine only its cores count: Ray may have been started with more logical CPUs (`MIN_LOGICAL_CPUS`), for
    operators that wait most of the time.
    """
    here, room = ray.util.get_node_ip_address(), 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        cpus, gpus = (node["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))
        if node["NodeManagerAddress"] == here:
            cpus = min(cpus, float(num_cores()))
        fits = cpus // num_cpus
        if num_gpus:  # a task that takes part of a GPU takes it of one
            fits = min(fits, gpus // num_gpus if num_gpus >= 1 else gpus * math.floor(1 / num_gpus + 1e-9))
        room += int(fits)
    return room


def is_lost(node_id: str) -> bool:
    """Whether a node of the cluster is not there any more."""
    return not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def answer_of(reference: ray.ObjectRef) -> Any:
    """A task's answer; a user's mistake found there is one sentence here too."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaygenesisError):
            raise error.cause from None
        raise


def each(function: Callable[..., Any], items: Iterable[Any], *shared: Any) -> Iterator[Any]:
    """Call `function(item, *shared)` in a task of its own for every item; yields results as they are ready.

    A task whose worker dies is run again; a mistake that a user can put right is raised as itself.
    """
    connect()
    task, waiting = ray.remote(function), iter(items)
    shared = tuple(ray.put(value) for value in shared)
    most = 4 * int(ray.cluster_resources().get("CPU", 1))
    running = [task.remote(item, *shared) for item in itertools.islice(waiting, most)]
    try:
        while running:
            (done,), running = ray.wait(running)
            running += [task.remote(item, *shared) for item in itertools.islice(waiting, 1)]
            yield answer_of(done)
    finally:
        # Nothing may still be writing when the caller has gone.
        for unfinished in running:
            ray.cancel(unfinished)
        for unfinished in running:
            with suppress(RayError):
                ray.get(unfinished)
