"""What this machine and the cluster offer, and what this process takes of it."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from raygenesis.text.amounts import several

CGROUP = Path("/sys/fs/cgroup")
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
    """Cores that this process may use: a container's share, or fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _limit("cpu.max").partition(" ")
    return min(cores, max(1, round(int(quota) / int(period)))) if quota.isdigit() else cores


def _limit(name: str) -> str:
    """A limit of the container's control group; empty without any."""
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""


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


def memory_gib() -> float:
    """Memory of this machine, or the container's share of it, in GiB."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit("memory.max")
    return (min(there, int(limit)) if limit.isdigit() else there) / 2**30


def peak_memory_gib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30
