"""What a sweep has to do."""

from __future__ import annotations

import math

from raygenesis.cluster.work import WORKER_GIB, Work
from raygenesis.pretraining.work import pretrain_work
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
    return Work(
        "sweep", start_s=START_S, what=f"{trials} trials",
        core_s=trials * one.core_s, most_cores=trials,
        gpu_s=trials * one.gpu_s, most_gpus=math.ceil(trials * num_gpus),
        read_mib=trials * one.read_mib,
        memory_gib_per_core=one.memory_gib - WORKER_GIB,  # without the process that starts it
    )  # fmt: skip
