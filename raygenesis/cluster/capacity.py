"""How many tasks the cluster has room for."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import ray
from ray.util.placement_group import PlacementGroup

from raygenesis.cluster import environment, fan_out, joining
from raygenesis.cluster.progress import say
from raygenesis.errors import SettingsError
from raygenesis.text.amounts import GIB
from raygenesis.workspace.hardware import num_cores

T = TypeVar("T")
GPU_SHARE = 0.01  # of a task that computes nothing
PATIENCE_S = 40.0  # for an autoscaler to begin starting nodes


def threads_per_worker(num_workers: int) -> int:
    """Threads for one of `num_workers` training processes on a node (Ray sets OMP_NUM_THREADS=1 in its workers)."""
    return max(1, num_cores() // num_workers)


def least_memory_gib() -> float:
    """Memory for tasks of the node that has the least, in GiB, of those with CPUs or GPUs; infinite without any."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    working = [there for there in resources if there.get("CPU") or there.get("GPU")]
    return min((there.get("memory", math.inf) for there in working), default=math.inf) / GIB


def room_for(num_cpus: float, num_gpus: float) -> int:
    """How many tasks the present nodes can run at once, each of which needs so much of one node."""
    return _room(joining.nodes(), num_cpus, num_gpus)


def num_concurrent(num_cpus: float, num_gpus: float) -> int:
    """How many such tasks to have running or waiting: in a cluster one more, for which an autoscaler adds a node."""
    return max(1, room_for(num_cpus, num_gpus)) + environment.is_joined()


def on_gpu(key: str, question: Callable[[], T]) -> T:
    """What a function returns on one of the cluster's GPUs. Raises SettingsError, naming `key`, if there is none."""
    require(key, num_gpus=1)
    return fan_out.in_a_task(lambda asked: asked(), question, options=fan_out.TaskOptions(num_gpus=GPU_SHARE))


def _room(nodes: Iterable[tuple[float, float]], num_cpus: float, num_gpus: float) -> int:
    room = 0
    for cpus, gpus in nodes:
        fits = cpus // num_cpus
        if num_gpus:  # a task that takes part of a GPU takes it of one
            fits = min(fits, gpus // num_gpus if num_gpus >= 1 else gpus * math.floor(1 / num_gpus + 1e-9))
        room += int(fits)
    return room


def require(key: str, num_tasks: int = 1, num_cpus: float = 1, num_gpus: float = 0.0) -> None:
    """Raise SettingsError, within a minute, if the cluster can never run so many tasks at once, each of which needs so
    much of one node; Ray itself would wait for ever.

    key: the setting that asks for them. An autoscaler is asked for the nodes that there are not yet.
    """
    there = [node[1:] for node in joining.logical_nodes()]
    if _room(there, num_cpus, num_gpus) >= num_tasks:
        return
    if environment.is_joined() and _grows(num_tasks, num_cpus, num_gpus):
        return
    wanted = f"{num_cpus:g} CPU" + (f" and {num_gpus:g} GPU" if num_gpus else "")
    lacks = "GPU" if num_gpus and _room(there, num_cpus, 0) >= num_tasks else "CPU"
    raise SettingsError(
        f"{key} needs {num_tasks} × {wanted}, each on one node, and the cluster will never have the {lacks}s: it has "
        f"{sum(gpus for _, gpus in there):g} GPUs and {sum(cpus for cpus, _ in there):g} CPUs on {len(there)} node(s), "
        "and no more are being started: ask for less, or join a cluster that has them"
    )


def _grows(num_tasks: int, num_cpus: float, num_gpus: float) -> bool:
    """Ask for the room; returns whether it came, or nodes are being started for it."""
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

    reply = GcsClient(address=ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=5)
    refused = GetClusterStatusReply.FromString(reply).autoscaling_state.infeasible_gang_resource_requests
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
    text = GcsClient(address=address).internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None)  # an older autoscaler
    report = json.loads(text)["autoscaler_report"] if text else {}
    return bool(report.get("pending_launches") or report.get("pending_nodes"))
