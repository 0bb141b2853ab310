"""What fine-tuning has to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from raygenesis.cluster.work import WORKER_GIB, Load, Work, core_s, gpu_s, training_gib
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.classifier import Classifier
from raygenesis.networks.network import UNet, build_encoder
from raygenesis.networks.operations import count_operations
from raygenesis.settings import Settings
from raygenesis.transfer.initialisations import Initialisation, check_fits
from raygenesis.transfer.statistics import RANDOM

START_S = 5.0


def finetune_work(
    settings: Settings, starts: Sequence[Initialisation], input_shape: tuple[int, ...], segments: bool
) -> Work:
    """Trials of each initialisation and number of labelled subjects: their steps; testing is not counted."""
    chosen, num_gpus = settings.finetune, settings.gpus_of_trial("finetune")
    trials = len(chosen.num_labelled) * chosen.num_trials
    trained = chosen.mode in ("full", "encoder") or (segments and chosen.mode == "frozen")
    samples = trials * trained * chosen.num_steps * chosen.batch_size
    loads = [_target_load(start.architecture, input_shape, segments) for start in starts]
    gib = max(training_gib(load, chosen.batch_size) for load in loads)
    trials *= len(starts)
    return Work(
        "finetune", start_s=START_S, what=f"{trials} trials" + f" × {chosen.num_steps} steps" * trained,
        core_s=0.0 if num_gpus else samples * sum(map(core_s, loads)), most_cores=trials,
        gpu_s=samples * sum(map(gpu_s, loads)) if num_gpus else 0.0, most_gpus=math.ceil(trials * num_gpus),
        memory_gib_per_core=WORKER_GIB + (0 if num_gpus else gib),
    )  # fmt: skip


def default_finetune_work(settings: Settings) -> Work:
    """Where no target is known: to segment, from random weights and from a run of the settings."""
    chosen, shape = settings.pretraining, settings.finetune.input_shape or settings.discovery.cube_shape
    network = Architecture(
        ndim=settings.ndim, network=chosen.network, base_width=chosen.base_width, norm=chosen.norm
    )  # fmt: skip
    start = Initialisation(RANDOM, None, network, "")
    check_fits(start, shape, settings.finetune.mode)
    return finetune_work(settings, [start] * 2, shape, segments=True)


@cache
def _target_load(architecture: Architecture, input_shape: tuple[int, ...], segments: bool) -> Load:
    """Of a segmentation network, or of a classifier; of a 2D one on 3D images slice by slice."""
    network = UNet(2, architecture) if segments else Classifier(build_encoder(architecture), 2)
    slices, in_plane = input_shape[: -architecture.ndim], input_shape[-architecture.ndim :]
    return count_operations(network, in_plane) * math.prod(slices)
