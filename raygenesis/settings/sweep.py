"""Settings of sweeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raygenesis.settings.section import Count, NumGpus, Section


class SweepSettings(Section):
    """Ray Tune over the pretraining's settings, on one pattern store; a file of its own says which (`--space`)."""

    search: Literal["grid", "random", "tpe"] = Field(
        "grid", description="All combinations, or `num_points` at random, or as Optuna's TPE proposes them."
    )
    num_points: Count = Field(16, description="Points of a random or TPE search.")
    num_seeds: Count = Field(1, description="Trainings of each point, each with a seed of its own.")
    num_classification_epochs: Annotated[int, Field(ge=0)] = Field(5, description="Of each trial.")
    num_joint_epochs: Annotated[int, Field(ge=0)] = Field(20, description="Of each trial.")
    objective: Literal["retrieval", "rankme", "target", "loss"] = Field(
        "retrieval",
        description="What points are ranked by: finding the same place in other held-out scans; the effective rank of "
        "held-out embeddings, which needs no labels; a target task learnt from few labels (as `finetune` says); or "
        "the held-out joint loss, which only points of the same λ and C share.",
    )
    target: str | None = Field(None, description="YAML file that describes the target task of objective `target`.")
    stopping: Literal["none", "median", "asha"] = Field(
        "none", description="Which trials end early: below the median of the others, or by successive halving (ASHA)."
    )
    max_concurrent_trials: Count | None = Field(
        None, description="Trials at once; as many as the cluster's CPUs and GPUs hold when null."
    )
    num_gpus: NumGpus | None = Field(
        None,
        description="GPUs for each trial, a fraction lets several share one; when null 1 with pretraining.use_gpu, "
        "else 0.",
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
