"""What this machine and the cluster offer, and what this process takes of it."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from raygenesis.text.amounts import GIB, MIB, several
from raygenesis.workspace import control_groups

SLURM_CORES, SLURM_MIB = "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE"  # of a job; 0 MiB is no limit
MIB_PER_S = 500.0  # that a node is supposed to read from and write to a workspace


@dataclass(frozen=True)
class Hardware:
    """Cores and GPUs of all nodes that a stage may use; processor: of this machine, by its name."""

    num_cores: int
    num_gpus: int = 0
    num_nodes: int = 1
    processor: str = ""

    @property
    def amount(self) -> str:
        """`2 cores, 1 GPU`."""
        cores, gpus = several(self.num_cores, "cores"), several(self.num_gpus, "GPUs")
        return f"{cores}, {gpus}" if self.num_gpus else cores


def num_cores() -> int:
    """Cores that this process may use: those it is bound to, a share by control groups, or what Slurm has given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit, given = control_groups.cpu_limit(), os.environ.get(SLURM_CORES, "")
    if limit is not None:
        cores = min(cores, max(1, round(limit)))
    return min(cores, max(1, int(given))) if given.isdigit() else cores


_joined: list[Hardware] = []


def available() -> Hardware:
    """The hardware of the cluster that this process has joined, else of this machine."""
    return _joined[-1] if _joined else Hardware(num_cores(), processor=processor())


def note_cluster(cluster: Hardware) -> None:
    """Have `available` return what a cluster offers from now on."""
    _joined[:] = [cluster]


@cache
def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def whole_memory_bytes() -> int:
    """Memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_gib() -> float:
    """Memory of this machine, or the share of it by control groups or Slurm, in GiB."""
    there = whole_memory_bytes()
    limit, given = control_groups.memory_limit(), os.environ.get(SLURM_MIB, "")
    there = there if limit is None else min(there, limit)
    return (min(there, int(given) * MIB) if given.isdigit() and int(given) else there) / GIB


def peak_memory_gib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB
