"""Starting or joining Ray with the settings that this pipeline needs."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from raygenesis.errors import ClusterError, RaygenesisError, SettingsError
from raygenesis.machine import Hardware, join, num_cores, processor
from raygenesis.progress import say

# Every live Ray Data operator, actor pool and train worker holds a logical CPU of its own; with fewer than this
# a pipeline of several operators waits for ever.
MIN_LOGICAL_CPUS = 4

PATIENCE_S = 40.0  # for an autoscaler to begin starting nodes
MOST_LOSSES = 20  # of a task's node, before the task is given up

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
    if is_joined():
        context = ray.init(logging_level=logging.WARNING, log_to_driver=False)
    else:
        context = ray.init(
            address="local",
            num_cpus=max(MIN_LOGICAL_CPUS, num_cores()),
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    _dashboards[:] = [context.dashboard_url or ""]
    note_hardware()
    _quieten_ray_data()


_dashboards: list[str] = []


def note_hardware() -> None:
    """Have `machine.hardware` tell of the nodes that there are now, where a Ray is joined."""
    if not ray.is_initialized():
        return
    working = [node for node in _nodes() if any(node)]  # a head may have neither CPUs nor GPUs
    cpus, gpus = (int(sum(node[place] for node in working)) for place in (0, 1))
    join(Hardware(cpus, gpus, max(len(working), 1), processor()))


def dashboard() -> str:
    """host:port of Ray's dashboard; empty where there is none."""
    return _dashboards[0] if _dashboards else ""


def is_joined() -> bool:
    """Whether jobs share a cluster, to which nodes may come, rather than a Ray of their own on this machine."""
    return "RAY_ADDRESS" in os.environ


def _quieten_ray_data() -> None:
    """Our stages show their own progress; Ray Data's bars would write over it."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def threads_per_worker(num_workers: int) -> int:
    """Threads for one of `num_workers` training processes on a node (Ray sets OMP_NUM_THREADS=1 in its workers)."""
    return max(1, num_cores() // num_workers)


def _logical_nodes() -> list[tuple[str, float, float]]:
    """Address, CPUs and GPUs of each node, as Ray counts them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        (node["NodeManagerAddress"], *(node["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))) for node in alive
    ]


def _nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs of each node.

    On this machine only its cores count: Ray may have been started with more logical CPUs (`MIN_LOGICAL_CPUS`), for
    operators that wait most of the time.
    """
    here = ray.util.get_node_ip_address()
    return [
        (min(cpus, float(num_cores())) if address == here else cpus, gpus) for address, cpus, gpus in _logical_nodes()
    ]


def least_memory_gib() -> float:
    """Of the nodes with CPUs or GPUs, what the one with the least has for tasks; endless where there are none yet."""
    working = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return (
        min(
            (there.get("memory", math.inf) for there in working if there.get("CPU") or there.get("GPU")),
            default=math.inf,
        )
        / 2**30
    )


def room_for(num_cpus: float, num_gpus: float) -> int:
    """How many tasks that need so much of one node each the nodes that there are can run at once; 0: none."""
    return _room(_nodes(), num_cpus, num_gpus)


def at_once(num_cpus: float, num_gpus: float) -> int:
    """How many such tasks to have running or waiting: in a cluster one that waits has an autoscaler add a node."""
    return max(1, room_for(num_cpus, num_gpus)) + is_joined()


def _room(nodes: Iterable[tuple[float, float]], num_cpus: float, num_gpus: float) -> int:
    room = 0
    for cpus, gpus in nodes:
        fits = cpus // num_cpus
        if num_gpus:  # a task that takes part of a GPU takes it of one
            fits = min(fits, gpus // num_gpus if num_gpus >= 1 else gpus * math.floor(1 / num_gpus + 1e-9))
        room += int(fits)
    return room


def is_lost(node_id: str) -> bool:
    """Whether a node of the cluster is not there any more."""
    return not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def require(key: str, num_tasks: int = 1, num_cpus: float = 1, num_gpus: float = 0.0) -> None:
    """Raise SettingsError, within a minute, if the cluster can never run so many tasks at once, each of which needs so
    much of one node; Ray itself would wait for ever.

    key: the setting that asks for them. An autoscaler is asked for the nodes that there are not yet.
    """
    there = [node[1:] for node in _logical_nodes()]
    if _room(there, num_cpus, num_gpus) >= num_tasks:
        return
    if is_joined() and _grows(num_tasks, num_cpus, num_gpus):
        return
    wanted = f"{num_cpus:g} CPU" + (f" and {num_gpus:g} GPU" if num_gpus else "")
    lacks = "GPU" if num_gpus and _room(there, num_cpus, 0) >= num_tasks else "CPU"
    raise SettingsError(
        f"{key} needs {num_tasks} × {wanted}, each on one node, and the cluster will never have the {lacks}s: it has "
        f"{sum(gpus for _, gpus in there):g} GPUs and {sum(cpus for cpus, _ in there):g} CPUs on {len(there)} node(s), "
        "and no more are being started: ask for less, or join a cluster that has them"
    )


def _grows(num_tasks: int, num_cpus: float, num_gpus: float) -> bool:
    """Ask for the room, and tell whether it came, or nodes are being started for it."""
    say("cluster", f"waiting up to {PATIENCE_S:.0f} s for machines with {num_cpus:g} CPU and {num_gpus:g} GPU")
    bundle = {"CPU": num_cpus, **({"GPU": num_gpus} if num_gpus else {})}
    asked = ray.util.placement_group([bundle] * num_tasks)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if asked.wait(1):
                return True
            if _is_refused(asked):
                return False
        return _nodes_are_coming()
    finally:
        ray.util.remove_placement_group(asked)


def _is_refused(asked: PlacementGroup) -> bool:
    """Whether the autoscaler says that no node that it may start would do."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # compiled
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined] # generated

    told = GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=5)
    refused = GetClusterStatusReply.FromString(told).autoscaling_state.infeasible_gang_resource_requests
    return any(asked.id.hex() in request.details for request in refused)


def _nodes_are_coming() -> bool:
    """Whether an autoscaler is starting nodes."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # compiled
    from ray.autoscaler.v2.sdk import get_cluster_status

    address = ray.get_runtime_context().gcs_address
    status = get_cluster_status(address)
    if status.pending_launches or status.pending_nodes:
        return True
    told = GcsClient(address=address).internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)  # an older autoscaler
    report = json.loads(told)["autoscaler_report"] if told else {}
    return bool(report.get("pending_launches") or report.get("pending_nodes"))


def answer_of(reference: ray.ObjectRef[Any]) -> Any:
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
            yield answer_of(done)
    finally:
        # Nothing may still be writing when the caller has gone.
        for unfinished in running:
            ray.cancel(unfinished)
        for unfinished in running:
            with suppress(RayError):
                ray.get(unfinished)
