"""What a finished pretraining is measured by, on a worker's device: a sample of patterns, whatever the store holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from raygenesis.cluster import fan_out
from raygenesis.cluster.capacity import threads_per_worker
from raygenesis.networks.network import PretextNetwork
from raygenesis.pretraining.probe import anatomy_retrieval, mean_image_error
from raygenesis.pretraining.task import PretextTask
from raygenesis.settings.streams import MEASURED_PATTERNS
from raygenesis.training.feeding import Samples
from raygenesis.training.file_samples import StoredPatterns

MOST_PATTERNS = 4096  # of training, and as many held-out ones


@dataclass(frozen=True)
class ClosingMeasures:
    """Measures of the best epoch's weights.

    mean_image_mse: error, on held-out cubes, of always answering with the mean training cube; None where nothing is
    restored. retrieval, retrieval_untrained: anatomy retrieval by these weights, and by those that training began with;
    None without held-out patterns.
    """

    mean_image_mse: float | None = None
    retrieval: float | None = None
    retrieval_untrained: float | None = None


@dataclass(frozen=True)
class ClosingData:
    """What is measured on. train, validation: of the task; places: held-out patterns of a store with places."""

    train: StoredPatterns
    validation: StoredPatterns
    places: StoredPatterns | None


def measure(
    task: PretextTask, weights: Mapping[str, torch.Tensor], data: ClosingData, use_gpu: bool
) -> ClosingMeasures:
    """Measure weights of a task's network, in a Ray task where patterns and a GPU, if one is used, are at hand."""
    options = fan_out.TaskOptions(num_gpus=float(use_gpu))
    return fan_out.in_a_task(_measured, task, dict(weights), data, "cuda" if use_gpu else "cpu", options=options)


def _measured(
    task: PretextTask, weights: Mapping[str, torch.Tensor], data: ClosingData, device: str
) -> ClosingMeasures:
    torch.set_num_threads(threads_per_worker(1))
    mean_image = retrieval = untrained = None
    if task.architecture.restores:
        train, validation = (_sampled(task, patterns) for patterns in (data.train, data.validation))
        mean_image = mean_image_error(train, validation, task.held_out_places)
    if data.places is not None:
        places = _sampled(task, data.places)
        untrained = _retrieval(task.build(), places, device)
        trained = task.build()
        trained.load_state_dict(weights)
        retrieval = _retrieval(trained, places, device)
    return ClosingMeasures(mean_image, retrieval, untrained)


def _retrieval(model: PretextNetwork, places: Samples, device: str) -> float:
    return anatomy_retrieval(model.to(device).encoder, places)


def _sampled(task: PretextTask, patterns: StoredPatterns) -> Samples:
    """All patterns, or row groups of at most MOST_PATTERNS: the same for all runs on a store, which are compared."""
    samples = patterns.open(task.sample_key, task.sample_shape)
    if len(samples) <= MOST_PATTERNS:
        return samples
    own = samples.layout.groups
    groups, counts = np.unique(own, return_counts=True)
    drawn = MEASURED_PATTERNS.generator(0).permutation(len(groups))
    kept = groups[drawn[np.cumsum(counts[drawn]) <= MOST_PATTERNS]]
    return samples.select(np.isin(own, kept))
