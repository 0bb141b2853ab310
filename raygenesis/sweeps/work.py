"""What a sweep has to do."""

from __future__ import annotations

import math

from raygenesis.cluster.work import WORKER_GIB, Work
from raygenesis.discovery.work import num_patterns
from raygenesis.pretraining.work import held_patterns_gib, pretrain_work, pretraining_gib
from raygenesis.settings import DiscoverySettings, PretrainingSettings, SweepSettings

START_S = 8.0


def sweep_work(
    sweep: SweepSettings, pretraining: PretrainingSettings, discovery: DiscoverySettings, num_gpus: float,
    num_points: int = 8,
) -> Work:  # fmt: skip
    """One short pretraining for each point and seed; 8 points is λ × K × C of the default space.

    num_gpus: of a trial.
    """
    trials = num_points * sweep.num_seeds
    changes = {name: getattr(sweep, name) for name in ("num_classification_epochs", "num_joint_epochs")}
    changes |= {"use_gpu": num_gpus > 0, "num_workers": 1}
    one = pretrain_work(pretraining.model_copy(update=changes), discovery)
    activations_gib = pretraining_gib(pretraining, discovery)
    held_gib = held_patterns_gib(pretraining, discovery, num_patterns(discovery, held_out=False))
    return Work(
        "sweep", start_s=START_S, what=f"{trials} trials",
        core_s=trials * one.core_s, most_cores=trials,
        gpu_s=trials * one.gpu_s, most_gpus=math.ceil(trials * num_gpus),
        read_mib=trials * one.read_mib,
        memory_gib_per_core=WORKER_GIB + held_gib + (0 if one.gpu_s else activations_gib),
    )  # fmt: skip
