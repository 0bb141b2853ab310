"""What pretraining has to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial

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
    training_gib,
)
from raygenesis.discovery.work import STORED_OF_CUBES, num_crops, num_patterns
from raygenesis.networks.load import load_of
from raygenesis.patterns.cells import DTYPE
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings import PretrainingSettings, Settings
from raygenesis.text.amounts import MIB
from raygenesis.workspace.manifest import StoreCounts

START_S = 12.0


@dataclass(frozen=True)
class StoreSize:
    """How much a store holds, or will: patterns to learn from and held out, neighbours, coordinates."""

    learnt: float
    held_out: float
    neighbours: float
    coordinates: float


def store_size(counts: StoreCounts) -> StoreSize:
    """The size of a store that is there."""
    learnt = counts.patterns - counts.validation
    return StoreSize(learnt, counts.validation, counts.neighbours, counts.coordinates)


def patterns_size(settings: Settings) -> StoreSize:
    """What discovery will store."""
    chosen = settings.discovery
    number, learnt = num_patterns(chosen), num_patterns(chosen, held_out=False)
    return StoreSize(learnt, number - learnt, chosen.num_neighbours, chosen.num_coordinates)


def crops_size(scans: ArchiveSize, settings: Settings) -> StoreSize:
    """What random cropping will store."""
    number, held_out = num_crops(scans, settings.discovery), settings.validation_fraction
    learnt = scans.num_scans * (1 - held_out)
    return StoreSize(number * (1 - held_out), number * held_out, learnt, number / scans.num_scans)


def selected(settings: PretrainingSettings, store: StoreSize) -> tuple[int, int]:
    """Patterns to learn from, and held out, that the pretraining's K and C leave of a store."""

    def share(asked: int | None, held: float) -> float:
        return 1.0 if asked is None else min(1.0, asked / held)

    coordinates = share(settings.num_coordinates, store.coordinates)
    learnt = store.learnt * share(settings.num_neighbours, store.neighbours) * coordinates
    return round(learnt), round(store.held_out * coordinates)


def pretrain_work(
    settings: Settings, store: StoreSize | None = None, num_epochs: int | None = None, num_learnt: int | None = None
) -> Work:
    """Classification alone, then jointly; each epoch also goes forward through what is held out.

    store: what there is; what discovery will store when None. num_epochs: of all phases, if training ended early.
    num_learnt: patterns that were learnt from, where that is known.
    """
    chosen = settings.pretraining
    learnt, held_out = selected(chosen, store or patterns_size(settings))
    learnt = learnt if num_learnt is None else num_learnt
    task = _pretext_task(settings)
    encoding, restoring, weights = _pretraining_loads(task)
    total = task.num_epochs if num_epochs is None else num_epochs
    num_restoring = sum(map(task.restores, range(total)))
    load = encoding * (total - num_restoring) + restoring * num_restoring
    samples = learnt + FORWARD * held_out
    stored_mib = (learnt + held_out) * math.prod(settings.discovery.cube_shape) * DTYPE.itemsize * STORED_OF_CUBES / MIB
    in_memory = stored_mib / 1024 <= chosen.memory_gib
    workers = chosen.most_workers
    return Work(
        "pretrain", start_s=START_S, what=f"{learnt:,} {task.pretext.crops} × {total} epochs",
        core_s=0.0 if chosen.use_gpu else samples * core_s(load),
        most_cores=workers if workers > 1 else ONE_NODE,
        gpu_s=samples * gpu_s(load) if chosen.use_gpu else 0.0, most_gpus=workers,
        read_mib=stored_mib * (1 if in_memory else total),
        stored_mib=CHECKPOINTS * weights * 4 / MIB,
        memory_gib=2 * WORKER_GIB + (stored_mib / 1024 if in_memory else 0)
        + (0 if chosen.use_gpu else training_gib(restoring, chosen.batch_size)),
    )  # fmt: skip


def _pretext_task(settings: Settings) -> PretextTask:
    plain = settings.pretraining.model_copy(update={"compile": False, "gradient_checkpointing": False})
    chosen = settings.discovery
    return PretextTask(plain, 0, chosen.cube_shape, chosen.num_references, chosen.num_coordinates)


@cache
def _pretraining_loads(task: PretextTask) -> tuple[Load, Load, int]:
    """Of encoder and head, and with the decoder, if there is one; and the number of weights."""
    model = task.build()
    weights = sum(weight.numel() for weight in model.parameters())
    num_images, *shape = task.shown_shape
    encoding, restoring = (
        load_of(model, shape, partial(model, restore=restore), num_images) for restore in (False, True)
    )
    return encoding, restoring, weights


def pretraining_gib(settings: Settings) -> float:
    """Activations and gradients of a batch."""
    _, restoring, _ = _pretraining_loads(_pretext_task(settings))
    return training_gib(restoring, settings.pretraining.batch_size)
