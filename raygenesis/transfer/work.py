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
from raygenesis.settings import FinetuneSettings, PretrainingSettings
from raygenesis.transfer.initialisations import RANDOM, Initialisation, check_fits
from raygenesis.transfer.split import TUNING_TRIALS

START_S = 5.0


def finetune_work(
    finetune: FinetuneSettings, num_gpus: float, initialisations: Sequence[Initialisation],
    input_shape: tuple[int, ...], segments: bool,
) -> Work:  # fmt: skip
    """The work of all trials of each initialisation and number of labelled subjects: their steps, without testing.

    num_gpus: of a trial; segments: whether it is a segmentation.
    """
    num_trials = len(finetune.num_labelled) * finetune.num_trials
    if finetune.chooses_rate(segments):
        num_trials += len(finetune.num_labelled) * len(finetune.rates) * TUNING_TRIALS
    trained = finetune.trains(segments)
    samples = num_trials * trained * finetune.num_steps * finetune.batch_size
    loads = [_target_load(each.architecture, input_shape, segments) for each in initialisations]
    gib = max(training_gib(load, finetune.batch_size) for load in loads)
    num_trials *= len(initialisations)
    return Work(
        "finetune", start_s=START_S, what=f"{num_trials} trials" + f" × {finetune.num_steps} steps" * trained,
        core_s=0.0 if num_gpus else samples * sum(map(core_s, loads)), most_cores=num_trials,
        gpu_s=samples * sum(map(gpu_s, loads)) if num_gpus else 0.0, most_gpus=math.ceil(num_trials * num_gpus),
        memory_gib_per_core=WORKER_GIB + (0 if num_gpus else gib),
    )  # fmt: skip


def default_finetune_work(
    finetune: FinetuneSettings, pretraining: PretrainingSettings, cube_shape: tuple[int, ...], num_gpus: float
) -> Work:
    """The work where no target is known: to segment, from random weights and from a run of the settings.

    num_gpus: of a trial.
    """
    shape = finetune.input_shape or cube_shape
    architecture = Architecture(
        ndim=len(cube_shape), network=pretraining.network, base_width=pretraining.base_width, norm=pretraining.norm
    )
    random = Initialisation(RANDOM, None, architecture, "")
    check_fits(random, shape, finetune)
    return finetune_work(finetune, num_gpus, [random] * 2, shape, segments=True)


@cache
def _target_load(architecture: Architecture, input_shape: tuple[int, ...], segments: bool) -> Load:
    """The load of a segmentation network or of a classifier; of a 2D network on 3D images slice by slice."""
    network = UNet(2, architecture) if segments else Classifier(build_encoder(architecture), 2)
    slices, in_plane = input_shape[: -architecture.ndim], input_shape[-architecture.ndim :]
    return count_operations(network, in_plane) * math.prod(slices)
