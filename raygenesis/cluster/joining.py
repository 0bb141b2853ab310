"""Starting or joining Ray with the settings that this pipeline needs."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from contextlib import suppress
from pathlib import Path

import ray
import ray.data

from raygenesis.cluster import environment
from raygenesis.errors import ClusterError
from raygenesis.workspace.hardware import Hardware, note_cluster, num_cores, processor

# Every live Ray Data operator, actor pool and train worker holds a logical CPU of its own; with fewer than this
# a pipeline of several operators waits for ever.
MIN_LOGICAL_CPUS = 4


def connect() -> None:
    """Join the cluster that `RAY_ADDRESS` names (set inside `ray job submit`), else start Ray on this machine.

    Workers' output stays in Ray's own logs: stages say what users need to know.
    """
    if ray.is_initialized():
        return
    if environment.is_joined():
        context = ray.init(logging_level=logging.WARNING, log_to_driver=False)
    else:
        context = ray.init(
            address="local",
            _temp_dir=None if "RAY_TMPDIR" in os.environ else str(own_folder() / "ray"),
            num_cpus=max(MIN_LOGICAL_CPUS, num_cores()),
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    _dashboards[:] = [context.dashboard_url or ""]
    note_hardware()
    _quieten_ray_data()


def own_folder() -> Path:
    """Where a Ray of this machine keeps its sockets, logs and what memory does not hold: nobody else may look in there.

    Its path is short, as sockets lie in it; Ray's own folder is inside of it, as Ray lets everybody into that. Raises
    ClusterError if somebody else has made it.
    """
    folder = Path(f"/tmp/rg-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise ClusterError(
            f"{folder} is not a folder that is yours alone, and Ray would keep patients' data in it: remove it, or "
            "name another one in RAY_TMPDIR"
        )
    return folder


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
