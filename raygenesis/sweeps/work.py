"""What a sweep has to do."""

from __future__ import annotations

import math

from raygenesis.cluster.work import WORKER_GIB, Work
from raygenesis.pretraining.work import pretrain_work, pretraining_gib
from raygenesis.settings import Settings

START_S = 8.0


def sweep_work(settings: Settings, num_points: int = 8) -> Work:
    """As many short pretrainings as there are points; 8 is λ × K × C of the space that `sweep` brings along."""
    chosen, num_gpus = settings.sweep, settings.gpus_of_trial("sweep")
    trials = num_points * chosen.num_seeds
    changes = {name: getattr(chosen, name) for name in ("num_classification_epochs", "num_joint_epochs")}
    changes |= {"use_gpu": num_gpus > 0, "num_workers": 1}
    one = pretrain_work(settings.model_copy(update={"pretraining": settings.pretraining.model_copy(update=changes)}))
    activations_gib = pretraining_gib(settings.pretraining, settings.discovery)
    return Work(
        "sweep", start_s=START_S, what=f"{trials} trials",
        core_s=trials * one.core_s, most_cores=trials,
        gpu_s=trials * one.gpu_s, most_gpus=math.ceil(trials * num_gpus),
        read_mib=trials * one.read_mib,
        memory_gib_per_core=WORKER_GIB + (0 if one.gpu_s else activations_gib),
    )  # fmt: skip
