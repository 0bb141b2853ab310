"""Settings of sweeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raygenesis.settings.section import Count, NumGpus, Section


class SweepSettings(Section):
    """A search over settings of pretraining with Ray Tune, on one pattern store; `--space` names which to vary."""

    search: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="Search algorithm: all combinations, or `num_points` points, drawn at random or proposed by "
        "Optuna's TPE.",
    )
    num_points: Count = Field(16, description="Number of points of a random or TPE search.")
    num_seeds: Count = Field(1, description="Number of trainings per point, each with a seed of its own.")
    num_classification_epochs: Annotated[int, Field(ge=0)] = Field(
        5, description="Epochs per trial of classification alone."
    )
    num_joint_epochs: Annotated[int, Field(ge=0)] = Field(20, description="Epochs per trial of both tasks together.")
    objective: Literal["retrieval", "rankme", "target", "loss"] = Field(
        "retrieval",
        description="Figure by which points are ranked. `retrieval`: finding the same place in other held-out scans; "
        "`rankme`: the effective rank of held-out embeddings, which needs no labels; `target`: the score on a target "
        "task fine-tuned on few labels (section `finetune`); `loss`: the held-out joint loss, which is comparable "
        "only between points of the same λ and C.",
    )
    target: str | None = Field(
        None, description="YAML file that describes the target task of the objective `target`; null for the others."
    )
    stopping: Literal["none", "median", "asha"] = Field(
        "none",
        description="Which trials are stopped early: none, those below the median of the others, or those that "
        "successive halving (ASHA) drops.",
    )
    max_concurrent_trials: Count | None = Field(
        None, description="Maximum number of trials at once. When null, as many as the cluster's CPUs and GPUs allow."
    )
    num_gpus: NumGpus | None = Field(
        None,
        description="GPUs per trial; with a fraction, several trials share one. When null, 1 with "
        "`pretraining.use_gpu`, otherwise 0.",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> SweepSettings:
        if self.num_classification_epochs + self.num_joint_epochs == 0:
            raise ValueError(
                "sweep.num_classification_epochs and sweep.num_joint_epochs are both 0: give one of them at least 1"
            )
        if self.objective == "target" and self.target is None:
            raise ValueError("sweep.objective=target needs a target: give sweep.target, a file that describes it")
        return self
