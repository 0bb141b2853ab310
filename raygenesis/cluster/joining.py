"""Starting or joining Ray with the settings that this pipeline needs."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray._private.worker import BaseContext
from ray.exceptions import AuthenticationError

from raygenesis.cluster import environment, machine
from raygenesis.cluster.head import reachable
from raygenesis.errors import ClusterError, reason_of
from raygenesis.text.amounts import GIB
from raygenesis.workspace.hardware import Hardware, memory_gib, note_cluster, num_cores, processor, whole_memory_bytes

# Every live Ray Data operator, actor pool and train worker holds a logical CPU of its own; with fewer than this
# a pipeline of several operators waits for ever.
MIN_LOGICAL_CPUS = 4
STDERR = 2
OBJECT_STORE_SHARE, LEAST_OBJECT_STORE = 0.3, GIB  # of the memory, as Ray's own


def connect() -> None:
    """Join the cluster that `RAY_ADDRESS` names (set inside `ray job submit`), else start Ray on this machine.

    Workers' output stays in Ray's own logs: stages say what users need to know. Raises ClusterError if there is no such
    cluster, if it is of other versions, or if this machine cannot run a Ray.
    """
    if ray.is_initialized():
        return
    address = environment.address()
    with _without_rays_own_words():
        context = _start() if address is None else _join(address)
    _dashboards[:] = [context.dashboard_url or ""]
    note_hardware()
    _quieten_ray_data()


@contextmanager
def _without_rays_own_words() -> Iterator[None]:
    """Ray's compiled part and its children write to this process's error output as it starts; we say what matters."""
    sys.stderr.flush()
    kept = os.dup(STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)


def _join(address: str) -> BaseContext:
    try:
        return ray.init(reachable(address), logging_level=logging.WARNING, log_to_driver=False)
    except AuthenticationError as error:
        raise ClusterError(
            f"RAY_ADDRESS={address}: the cluster refuses this job's token ({reason_of(error)}): set RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH, as on its head"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(f"RAY_ADDRESS={address}: the cluster cannot be joined: {_in_a_line(error)}") from error


def _start() -> BaseContext:
    machine.raise_open_files()
    folder = machine.ray_folder()
    try:
        return ray.init(
            address="local",
            num_cpus=max(MIN_LOGICAL_CPUS, num_cores()),
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
            _temp_dir=str(folder),
            **_memory(),
        )
    except Exception as error:  # of several kinds, one of them plain `Exception`
        raise ClusterError(
            f"Ray did not start on this machine: {_in_a_line(error)}; `raygenesis doctor` looks for the reason, and "
            f"Ray's logs are in {folder}/session_latest/logs"
        ) from error


def _memory() -> dict[str, Any]:
    """What Ray is told of the memory where it may take less than the machine has: it sees a container's limit alone."""
    there = int(memory_gib() * GIB)
    if there >= whole_memory_bytes():
        return {}
    objects = min(int(OBJECT_STORE_SHARE * there), max(machine.shared_memory_bytes(), LEAST_OBJECT_STORE))
    return {"object_store_memory": objects, "_memory": there - objects}


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_dashboards: list[str] = []


def note_hardware() -> None:
    """Have `hardware.available` return the nodes that there are now, if this process has joined a Ray."""
    if not ray.is_initialized():
        return
    working = [node for node in nodes() if any(node)]  # a head may have neither CPUs nor GPUs
    cpus, gpus = (int(sum(node[place] for node in working)) for place in (0, 1))
    note_cluster(Hardware(cpus, gpus, max(len(working), 1), processor()))


def dashboard() -> str:
    """host:port of Ray's dashboard; empty where there is none."""
    return _dashboards[0] if _dashboards else ""


def _quieten_ray_data() -> None:
    """Our stages show their own progress and raise what a task raised; Ray Data would write both once more."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Nothing else bounds how often a lost task is tried again (`streams.RETRIED`).
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")


def logical_nodes() -> list[tuple[str, float, float]]:
    """Address, CPUs and GPUs of each node, as Ray counts them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        (node["NodeManagerAddress"], *(node["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))) for node in alive
    ]


def nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs of each node.

    On this machine only its cores count: Ray may have been started with more logical CPUs (`MIN_LOGICAL_CPUS`), for
    operators that wait most of the time.
    """
    here = ray.util.get_node_ip_address()
    return [
        (min(cpus, float(num_cores())) if address == here else cpus, gpus) for address, cpus, gpus in logical_nodes()
    ]
