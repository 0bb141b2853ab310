"""Work: what a stage has to do, in seconds of one core (or GPU) at the rates that are shipped, and in bytes.

Each stage says in its own folder, in `work.py`, what its work is; `planning` sums it up and prices it. The rates were
measured on 2 cores (RATES_OF); for GPUs they are assumed, as none was at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raygenesis.text.amounts import GIB

RATES_OF = "an AMD EPYC, 2 cores"
GPU_OF = "a GPU of 10 effective TFLOP/s, assumed and not measured"

# Training, forward and backward.
CORE_S_PER_GFLOP, CORE_S_PER_MEGA_ACTIVATION = 0.0056, 0.0119
GPU_S_PER_GFLOP, GPU_S_PER_MEGA_ACTIVATION = 1.0e-4, 2.7e-5
FORWARD = 1 / 3  # of training on a sample

CHECKPOINTS = 9  # times the weights: a run's checkpoints (weights, best ones, Adam's moments) and its encoder
WORKER_GIB = 0.6  # a process that has imported torch and Ray
ONE_NODE = -1  # `most_cores` of one process: the cores of its node


@dataclass(frozen=True)
class ArchiveSize:
    """How many scans there are, and the mean size of one: MiB of voxels, and MiB of its files."""

    num_scans: int
    voxel_mib: float
    source_mib: float


@dataclass(frozen=True)
class Load:
    """The load of one sample: billions of floating-point operations, and millions of numbers that layers put out.

    Wide networks are bound by the first, narrow ones by the second.
    """

    gflop: float = 0.0
    mega_activations: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(self.gflop + other.gflop, self.mega_activations + other.mega_activations)

    def __mul__(self, number: float) -> Load:
        return Load(self.gflop * number, self.mega_activations * number)


@dataclass(frozen=True)
class Work:
    """What a stage has to do.

    what: in words; start_s: seconds until it begins; core_s: seconds on one core, of work that at most `most_cores` can
    share; gpu_s, most_gpus: the same of GPUs, instead of cores; read, stored: MiB from and to the workspace;
    memory_gib: held at once, by `most_cores`; gpu_gib: of each GPU's memory.
    """

    stage: str
    what: str
    core_s: float
    start_s: float = 0.0
    most_cores: float = math.inf
    gpu_s: float = 0.0
    most_gpus: int = 0
    read_mib: float = 0.0
    stored_mib: float = 0.0
    memory_gib: float = WORKER_GIB
    memory_gib_per_core: float = 0.0
    gpu_gib: float = 0.0


# What a verb calls, before it begins, with the work that is left to do.
Announce = Callable[[Sequence[Work]], None]


def unannounced(left: Sequence[Work]) -> None:
    """Say nothing of the work that is left: what verbs do when they are called as functions."""


def core_s(load: Load) -> float:
    """Seconds of one core to train on a sample."""
    return load.gflop * CORE_S_PER_GFLOP + load.mega_activations * CORE_S_PER_MEGA_ACTIVATION


def gpu_s(load: Load) -> float:
    """Seconds of one GPU to train on a sample."""
    return load.gflop * GPU_S_PER_GFLOP + load.mega_activations * GPU_S_PER_MEGA_ACTIVATION


def training_gib(load: Load, batch_size: int) -> float:
    """Activations of a batch, kept for the backward pass, and as much again for gradients."""
    return 2 * load.mega_activations * 1e6 * 4 * batch_size / GIB
