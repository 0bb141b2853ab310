"""The work of pretraining."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial

from raygenesis.archive.catalogue import num_held_out
from raygenesis.cluster.work import (
    CHECKPOINTS,
    FORWARD,
    ONE_NODE,
    WORKER_GIB,
    ArchiveSize,
    Load,
    Work,
    core_s,
    gpu_s,
)
from raygenesis.discovery.work import STORED_OF_CUBES, crops_per_scan, num_patterns
from raygenesis.networks.network import num_parameters
from raygenesis.networks.operations import count_operations
from raygenesis.patterns.cells import DTYPE
from raygenesis.patterns.schema import ROWS_PER_GROUP
from raygenesis.pretraining.pretexts import CONTRAST
from raygenesis.pretraining.stages import stages_of
from raygenesis.pretraining.step_memory import step_memory
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import DiscoverySettings, PretrainingSettings
from raygenesis.text.amounts import GIB, MIB
from raygenesis.training.file_samples import usual_window
from raygenesis.training.precision import AUTO
from raygenesis.workspace.manifest import StoreCounts

START_S = 12.0


@dataclass(frozen=True)
class StoreSize:
    """How much a store holds, or will hold.

    learnt, held_out: patterns of training and of validation; neighbours, coordinates: of each reference.
    """

    learnt: float
    held_out: float
    neighbours: float
    coordinates: float


def store_size(counts: StoreCounts) -> StoreSize:
    """The size of a store that is there."""
    learnt = counts.patterns - counts.validation
    return StoreSize(learnt, counts.validation, counts.neighbours, counts.coordinates)


def patterns_size(settings: DiscoverySettings) -> StoreSize:
    """What discovery will store."""
    number, learnt = num_patterns(settings), num_patterns(settings, held_out=False)
    return StoreSize(learnt, number - learnt, settings.num_neighbours, settings.num_coordinates)


def crops_size(scans: ArchiveSize, settings: DiscoverySettings, validation_fraction: float) -> StoreSize:
    """What random cropping will store."""
    held_out = num_held_out(scans.num_scans, validation_fraction)
    learnt = scans.num_scans - held_out
    crops = crops_per_scan(settings, learnt)
    return StoreSize(learnt * crops, held_out * crops, learnt, crops)


def selected(settings: PretrainingSettings, store: StoreSize) -> tuple[int, int]:
    """Patterns to learn from, and held out, that the pretraining's K and C leave of a store."""

    def share(number: int | None, most: float) -> float:
        return 1.0 if number is None else min(1.0, number / most)

    coordinates = share(settings.num_coordinates, store.coordinates)
    learnt = store.learnt * share(settings.num_neighbours, store.neighbours) * coordinates
    return round(learnt), round(store.held_out * coordinates)


def pretrain_work(
    settings: PretrainingSettings, discovery: DiscoverySettings, store: StoreSize | None = None,
    num_epochs: int | None = None, num_learnt: int | None = None, num_done: int = 0,
) -> Work:  # fmt: skip
    """The work of a pretraining: its epochs, each of which also goes forward through held-out patterns.

    store: what discovery will store when None. num_epochs: of all phases, where training ended early. num_learnt:
    patterns that were learnt from, where that is known. num_done: epochs that were trained before.
    """
    learnt, held_out = selected(settings, store or patterns_size(discovery))
    learnt = learnt if num_learnt is None else num_learnt
    task = _pretext_task(settings, discovery)
    encoding, restoring, weights = _pretraining_loads(task)
    total = task.num_epochs if num_epochs is None else num_epochs
    epochs = range(num_done, total)
    shares = [_share_of_scales(task, discovery, epoch) for epoch in epochs]
    load = Load()
    for epoch, share in zip(epochs, shares, strict=True):
        of_epoch = restoring if task.decodes(epoch) else encoding
        if task.learns(CONTRAST, epoch):
            of_epoch += encoding * FORWARD  # by the teacher
        load += of_epoch * (learnt * share + FORWARD * held_out)
    cube_mib = math.prod(discovery.cube_shape) * DTYPE.itemsize * STORED_OF_CUBES / MIB
    in_memory = learnt * cube_mib / 1024 <= settings.memory_gib
    held_gib = _held_gib(settings, discovery, learnt)
    workers, step_gib = settings.most_workers, _step_gib(settings, discovery)
    return Work(
        "pretrain", start_s=START_S, what=f"{learnt:,} {task.pretext.store.name} × {len(epochs)} epochs"
        + f", each of one of {len(task.stages)} scales" * bool(task.stages),
        core_s=0.0 if settings.use_gpu else core_s(load),
        most_cores=workers if workers > 1 else ONE_NODE,
        gpu_s=gpu_s(load) if settings.use_gpu else 0.0, most_gpus=workers,
        read_mib=((learnt if in_memory else learnt * sum(shares)) + held_out * len(epochs)) * cube_mib,
        stored_mib=CHECKPOINTS * weights * 4 / MIB,
        memory_gib=2 * WORKER_GIB + workers * (held_gib + (0 if settings.use_gpu else step_gib)),
        gpu_gib=step_gib if settings.use_gpu else 0.0,
    )  # fmt: skip


def _held_gib(settings: PretrainingSettings, discovery: DiscoverySettings, learnt: float) -> float:
    """GiB of encoded patterns that a worker holds: all that it learns from, or a window of them."""
    cube_gib = math.prod(discovery.cube_shape) * DTYPE.itemsize * STORED_OF_CUBES / GIB
    window = ROWS_PER_GROUP * (settings.window_groups or usual_window(discovery.cube_shape))
    return cube_gib * (learnt if learnt * cube_gib <= settings.memory_gib else min(learnt, window))


def _pretext_task(settings: PretrainingSettings, discovery: DiscoverySettings) -> PretextTask:
    return _task(settings.model_copy(update={"compile": False, "gradient_checkpointing": False}), discovery)


def _task(settings: PretrainingSettings, discovery: DiscoverySettings) -> PretextTask:
    return PretextTask(
        settings, 0, discovery.cube_shape, discovery.num_references, discovery.num_coordinates,
        stages=stages_of(settings, discovery.scales),
    )  # fmt: skip


def _share_of_scales(task: PretextTask, discovery: DiscoverySettings, epoch: int) -> float:
    """The share of the patterns that an epoch learns from: each scale has as many."""
    scales = task.scales(epoch)
    return 1.0 if scales is None else len(scales) / len(discovery.scales)


@cache
def _pretraining_loads(task: PretextTask) -> tuple[Load, Load, int]:
    """Loads of encoder and head, and of these with the decoder, if there is one; and the number of parameters."""
    model = task.build()
    num_images, *shape = task.shown_shape
    crosses = bool(task.pretext.lambda_cross)
    encoding, restoring = (
        count_operations(model, shape, partial(model, restore=decode, cross=decode and crosses), num_images)
        for decode in (False, True)
    )
    return encoding, restoring, num_parameters(model)


def _step_gib(settings: PretrainingSettings, discovery: DiscoverySettings) -> float:
    """GiB that a step of training takes of a worker's device; `precision=auto` is bf16 on a GPU."""
    if settings.use_gpu and settings.precision == AUTO:
        settings = settings.model_copy(update={"precision": "bf16"})
    return step_memory(_task(settings, discovery), settings.fewest_workers).total / GIB
