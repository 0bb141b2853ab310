"""Whether a step of pretraining fits into the memory of its GPU, and what would make it fit."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from raygenesis.cluster import capacity
from raygenesis.errors import SettingsError
from raygenesis.patterns.reader import TRAINING_COLUMNS
from raygenesis.pretraining.task import PretextBatch, PretextTask
from raygenesis.text.amounts import size
from raygenesis.training.device_memory import DeviceMemory, device_memory
from raygenesis.training.feeding import Batch

SHARE = 0.92  # of a GPU's memory: the rest is CUDA's own, its libraries' and lost between blocks


def step_memory(task: PretextTask, num_workers: int = 1) -> DeviceMemory:
    """What a step takes of each worker's device where it takes most: in the last epoch, in which all is learnt."""
    num_cubes = math.ceil(task.batch_size / task.settings.num_pieces / num_workers)
    if task.pretext.learns_from_pairs:
        num_cubes += num_cubes % 2
    # How the network is laid out and run changes nothing in what it keeps; shares of classes are small.
    plain = task.settings.model_copy(update={"compile": False, "channels_last": False, "overlap": None})
    return _traced(replace(task, settings=plain, boxes=None), num_cubes)


@functools.cache
def _traced(task: PretextTask, num_cubes: int) -> DeviceMemory:
    epoch = task.num_epochs - 1
    example = task.make_batch(_example(task), epoch)

    def loss_of(model: nn.Module, average: nn.Module | None) -> torch.Tensor:
        batch = PretextBatch._make(None if part is None else _as_many(part, num_cubes) for part in example)
        return task.losses_of(model, batch, epoch, average)["loss"]

    return device_memory(task.build, task.optimizer, loss_of, task.tuning.average_decay is not None)


def _example(task: PretextTask) -> Batch:
    """One black cube."""
    columns = {name: np.zeros(1, np.int64) for name in TRAINING_COLUMNS if name != "cube"}
    return Batch(torch.zeros(1, 1, *task.sample_shape), columns)


def _as_many(part: torch.Tensor, num_cubes: int) -> torch.Tensor:
    """A part of a batch of one cube, of so many: shapes are all that counts."""
    return torch.zeros(len(part) * num_cubes, *part.shape[1:], dtype=part.dtype)


def check_memory(task: PretextTask, num_workers: int) -> None:
    """Raise SettingsError if a step does not fit into a GPU of the cluster, with the least change that would."""
    there = capacity.on_gpu("pretraining.use_gpu=true", _gpu_bytes)
    wanted = step_memory(task, num_workers).total
    if wanted <= SHARE * there:
        return
    found = next(
        (words for words, other in _smaller(task) if step_memory(other, num_workers).total <= SHARE * there), None
    )
    advice = f"give {found}" if found else "lower pretraining.base_width, or make the store again with smaller cubes"
    raise SettingsError(
        f"pretraining.batch_size={task.batch_size}: a step takes {size(wanted)} of a GPU of {size(there)}, of which "
        f"{size(SHARE * there)} can be used: {advice}"
    )


def _smaller(task: PretextTask) -> Iterator[tuple[str, PretextTask]]:
    """Ways to take less, the least first: what changes the result least, and costs least."""
    changes: list[dict[str, object]] = []
    if task.settings.precision == "fp32":
        changes.append({"precision": "bf16"})
    changes.append({"gradient_checkpointing": True})
    pieces = task.settings.num_pieces
    while pieces * 2 <= task.batch_size // 2:
        pieces *= 2
        changes.append({"num_pieces": pieces})
    changes += [{"gradient_checkpointing": True, **change} for change in changes if "num_pieces" in change]
    for change in changes:
        words = " ".join(f"pretraining.{key}={str(value).lower()}" for key, value in change.items())
        yield words, replace(task, settings=task.settings.model_copy(update=change))


def _gpu_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory
