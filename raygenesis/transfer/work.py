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
from raygenesis.settings import FinetuneSettings, Settings
from raygenesis.transfer.initialisations import RANDOM, Initialisation, check_fits

START_S = 5.0


def finetune_work(
    finetune: FinetuneSettings, num_gpus: float, initialisations: Sequence[Initialisation],
    input_shape: tuple[int, ...], segments: bool,
) -> Work:  # fmt: skip
    """The work of all trials of each initialisation and number of labelled subjects: their steps, without testing.

    num_gpus: of a trial; segments: whether it is a segmentation.
    """
    num_trials = len(finetune.num_labelled) * finetune.num_trials
    trained = finetune.mode in ("full", "encoder") or (segments and finetune.mode == "frozen")
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


def default_finetune_work(settings: Settings) -> Work:
    """The work where no target is known: to segment, from random weights and from a run of the settings."""
    chosen, shape = settings.pretraining, settings.finetune.input_shape or settings.discovery.cube_shape
    architecture = Architecture(
        ndim=settings.ndim, network=chosen.network, base_width=chosen.base_width, norm=chosen.norm
    )
    random = Initialisation(RANDOM, None, architecture, "")
    check_fits(random, shape, settings.finetune.mode)
    return finetune_work(settings.finetune, settings.gpus_of_trial("finetune"), [random] * 2, shape, segments=True)


@cache
def _target_load(architecture: Architecture, input_shape: tuple[int, ...], segments: bool) -> Load:
    """The load of a segmentation network or of a classifier; of a 2D network on 3D images slice by slice."""
    network = UNet(2, architecture) if segments else Classifier(build_encoder(architecture), 2)
    slices, in_plane = input_shape[: -architecture.ndim], input_shape[-architecture.ndim :]
    return count_operations(network, in_plane) * math.prod(slices)
