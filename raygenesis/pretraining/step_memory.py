"""What a step of pretraining takes of the device of each worker."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from raygenesis.patterns.reader import TRAINING_COLUMNS
from raygenesis.pretraining.task import PretextBatch, PretextTask
from raygenesis.training.device_memory import DeviceMemory, device_memory
from raygenesis.training.feeding import PREFETCHED_BATCHES, Batch


def step_memory(task: PretextTask, num_workers: int = 1) -> DeviceMemory:
    """What a step takes of each worker's device where it takes most: in the last epoch, in which all is learnt."""
    num_cubes = math.ceil(task.batch_size / task.settings.num_pieces / num_workers)
    if task.pretext.learns_from_pairs:
        num_cubes += num_cubes % 2
    # How the network is laid out and run changes nothing in what it keeps; shares of classes are small.
    plain = task.settings.model_copy(update={"compile": False, "channels_last": False, "overlap": None})
    return _traced(replace(task, settings=plain, seed=0, boxes=None), num_cubes)


@functools.cache
def _traced(task: PretextTask, num_cubes: int) -> DeviceMemory:
    epoch = task.num_epochs - 1
    example = task.make_batch(_example(task), epoch)

    def loss_of(model: nn.Module, average: nn.Module | None) -> torch.Tensor:
        batch = PretextBatch._make(None if part is None else _as_many(part, num_cubes) for part in example)
        return task.losses_of(model, batch, epoch, average)["loss"]

    memory = device_memory(task.build, task.optimizer, loss_of, task.tuning.average_decay is not None)
    steps = num_cubes * math.prod(task.sample_shape) * torch.int16.itemsize
    return replace(memory, feed=(PREFETCHED_BATCHES + 1) * steps)


def _example(task: PretextTask) -> Batch:
    """One black cube."""
    columns = {name: np.zeros(1, np.int64) for name in TRAINING_COLUMNS if name != "cube"}
    return Batch(torch.zeros(1, 1, *task.sample_shape), columns)


def _as_many(part: torch.Tensor, num_cubes: int) -> torch.Tensor:
    """A part of a batch of one cube, of so many: shapes are all that counts."""
    return torch.zeros(len(part) * num_cubes, *part.shape[1:], dtype=part.dtype)
