"""Settings of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raygenesis.settings.section import Count, ExtentMm, NumGpus, Positive, Section, Shape

Labelled = Annotated[int, Field(ge=2)] | Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9](\.[0-9]+)?)%$")]


class FinetuneSettings(Section):
    """Learning a target task from few labelled subjects, from each initialisation."""

    mode: Literal["full", "encoder", "frozen", "knn"] = Field(
        "full",
        description="What comes from the initialisation. full: encoder and decoder (of a classifier, the encoder); "
        "encoder: the encoder, with a new decoder; frozen: the encoder, which stays as it is (linear probe); knn: "
        "nothing is trained, the labelled cases with the nearest embeddings answer.",
    )
    spacing_mm: ExtentMm | None = Field(
        None, description="Voxel size z y x of whole scans to be segmented; the labelled scans' median when null."
    )
    input_shape: Shape | None = Field(
        None,
        description="Voxels z y x of what a network is trained on: a patch of a scan to be segmented, a region, or a "
        "whole scan. When null the cube's; of a whole scan that is to be classified, the auto-encoder's.",
    )
    num_labelled: Annotated[tuple[Labelled, ...], Field(min_length=1)] = Field(
        (5,),
        description="Labelled subjects to learn from: a number, a share such as 10% of those that are not tested on, "
        "or several such as [5, 20, 100%].",
    )
    num_test: Count = Field(20, description="Subjects to test on, where there is no official list.")
    num_validation: Annotated[int, Field(ge=0)] = Field(
        0, description="Subjects that tell when to stop and which weights are best, where there is no official list."
    )
    num_trials: Annotated[int, Field(ge=2)] = Field(10, description="Seeded trials of each initialisation.")
    num_steps: Count = Field(400, description="Batches of a training, at the most.")
    batch_size: Annotated[int, Field(ge=2)] = Field(8, description="Patches, regions or scans in a step.")
    learning_rate: Positive = Field(1e-3, description="Of Adam, at the most.")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine",
        description="cosine: the learning rate rises over the first tenth of the steps and falls to 0; constant: as in "
        "the paper.",
    )
    patience: Count | None = Field(
        None, description="Validations (20 a training) without a better score before stopping; never when null."
    )
    class_balance: Literal["none", "weights"] = Field(
        "weights", description="weights: rare classes count more in the loss of a classification."
    )
    k: Count = Field(5, description="Labelled cases that answer in mode knn, weighed by the inverse of their distance.")
    num_gpus: NumGpus | None = Field(
        None,
        description="GPUs for each trial, a fraction lets several share one; when null 1 with pretraining.use_gpu, "
        "else 0.",
    )
    allow_seen: bool = Field(False, description="Test also on subjects that pretraining has learnt from.")

    @field_validator("num_labelled", mode="before")
    @classmethod
    def _is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else (value,)

    @model_validator(mode="after")
    def _labelled_differ(self) -> FinetuneSettings:
        if len(set(self.num_labelled)) < len(self.num_labelled):
            raise ValueError(f"finetune.num_labelled={list(self.num_labelled)} names a number twice: leave one out")
        return self
