"""Settings of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from raygenesis.settings.section import Count, ExtentMm, NonNegative, NumGpus, Positive, Section, Shape

Labelled = Count | Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9](\.[0-9]+)?)%$")]


class FinetuneSettings(Section):
    """Fine-tuning on a target task with few labelled subjects, from each initialisation."""

    mode: Literal["full", "encoder", "frozen", "probe", "knn"] = Field(
        "full",
        description="What is taken from the initialisation. `full`: encoder and decoder (of a classifier, the "
        "encoder); `encoder`: the encoder, with a new decoder; `frozen`: the encoder, which is not trained, below a "
        "new decoder (of a classifier, a linear model of its embedding); `probe`: only a linear model is fitted, to "
        "the features of all levels at each voxel (of a classifier, as `frozen`); `knn`: nothing is trained, and the "
        "labelled cases with the nearest embeddings vote.",
    )
    probe_features: Literal["encoder", "encoder+decoder"] = Field(
        "encoder",
        description="Levels whose features mode `probe` reads in a segmentation; `encoder+decoder` needs "
        "pretraining.network=unet.",
    )
    spacing_mm: ExtentMm | None = Field(
        None,
        description="Voxel size in mm, z y x, to which whole scans are resampled for segmentation. When null, the "
        "median of the target's scans.",
    )
    input_shape: Shape | None = Field(
        None,
        description="Shape in voxels, z y x, of the network's input: a patch of a scan to be segmented, a region, or "
        "a whole scan. When null, the shape of a pattern; for the classification of whole scans, that of the "
        "auto-encoder's input.",
    )
    num_labelled: Annotated[tuple[Labelled, ...], Field(min_length=1)] = Field(
        (5,),
        description="Number of labelled subjects to train on: a number, a share such as 10% of those that are not "
        "tested on, or a list such as [5, 20, 100%].",
    )
    num_test: Count = Field(20, description="Number of test subjects, for targets without an official split.")
    num_validation: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Number of validation subjects, which decide when training stops and which weights are best, for "
        "targets without an official split.",
    )
    num_trials: Annotated[int, Field(ge=2)] = Field(
        10, description="Number of trials per initialisation, each with a seed of its own."
    )
    num_steps: Count = Field(
        400, description="Maximum number of optimiser steps per trial; `patience` may stop earlier."
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(8, description="Patches, regions or scans per optimiser step.")
    learning_rate: Positive | Annotated[tuple[Positive, ...], Field(min_length=2)] = Field(
        1e-3,
        description="Learning rate of the AdamW optimiser; with `cosine`, its peak. Of a list such as [0.001, 0.003], "
        "each initialisation gets the rate that is best for it on the validation subjects, for each number of labelled "
        "subjects.",
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine",
        description="Schedule of the learning rate. `cosine`: it rises over the first tenth of the steps, then falls "
        "to 0; `constant`: as in the paper.",
    )
    weight_decay: NonNegative = Field(
        0.01, description="Weight decay of the AdamW optimiser; with 0 it is Adam, as in the paper."
    )
    decoder_first: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Share of the steps, such as 0.2, in which the encoder is not trained, only the decoder or the "
        "head; then everything is. The rate runs through its schedule in both. When null, everything is trained from "
        "the first step.",
    )
    loss: Literal["dice+cross-entropy", "dice"] = Field(
        "dice+cross-entropy",
        description="Loss of a segmentation: soft Dice of the foreground classes, with the cross-entropy of all "
        "classes added, or alone, as in the paper.",
    )
    augmentation: Literal["standard", "none"] = Field(
        "standard",
        description="Random changes of what is learnt from. `standard`: rotation, scaling, shift, gamma, gain, offset "
        "and noise, and mirroring along the target's `symmetric_axes`.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Precision of the forward pass of networks that are trained; bf16 uses autocast. `auto`: as for "
        "`pretraining.precision`.",
    )
    patience: Count | None = Field(
        None,
        description="Stop after this many validations (20 per training) without a better score. When null, training "
        "is not stopped early.",
    )
    class_balance: Literal["none", "weights"] = Field(
        "weights",
        description="With `weights`, rare classes count more: in the loss of a classification by the inverse of their "
        "number, in the cross-entropy of a segmentation by the inverse root of their number of voxels.",
    )
    k: Count = Field(
        5, description="Number of labelled cases that vote in mode `knn`, weighted by the inverse of their distance."
    )
    num_gpus: NumGpus | None = Field(
        None,
        description="GPUs per trial; with a fraction, several trials share one. When null, 1 with "
        "`pretraining.use_gpu`, otherwise 0.",
    )
    allow_seen: bool = Field(False, description="Allow test subjects that pretraining has seen.")

    @property
    def takes_decoder(self) -> bool:
        """Whether the mode takes the initialisation's decoder, in a segmentation."""
        return self.mode == "full" or (self.mode == "probe" and self.probe_features == "encoder+decoder")

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates: one, or those of the grid from which each initialisation gets its own."""
        return self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate,)

    def with_rate(self, rate: float) -> FinetuneSettings:
        """The settings with one learning rate."""
        return self.model_copy(update={"learning_rate": rate})

    def trains(self, segments: bool) -> bool:
        """Whether the mode trains a network step by step. segments: whether the task is a segmentation."""
        return self.mode in ("full", "encoder") or (segments and self.mode == "frozen")

    def chooses_rate(self, segments: bool) -> bool:
        """Whether there is a learning rate to choose for each initialisation; `segments` as for `trains`."""
        return len(self.rates) > 1 and self.trains(segments)

    @field_validator("num_labelled", mode="before")
    @classmethod
    def _is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else (value,)

    @field_validator("learning_rate", mode="wrap")
    @classmethod
    def _is_a_rate_or_a_grid(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            if not isinstance(value, (list, tuple)):
                raise
            given = f"finetune.learning_rate={list(value)}"
            raise ValueError(f"{given} must be several numbers greater than 0: mend it, or give one number") from None

    @model_validator(mode="after")
    def _encoder_can_wait(self) -> FinetuneSettings:
        if self.decoder_first is not None and self.mode not in ("full", "encoder"):
            raise ValueError(
                f"finetune.decoder_first={self.decoder_first:g}: finetune.mode={self.mode} never trains the encoder; "
                "leave it out, or give mode full or encoder"
            )
        return self

    @model_validator(mode="after")
    def _values_differ(self) -> FinetuneSettings:
        if len(set(self.num_labelled)) < len(self.num_labelled):
            raise ValueError(f"finetune.num_labelled={list(self.num_labelled)} names a number twice: leave one out")
        if len(set(self.rates)) < len(self.rates):
            raise ValueError(f"finetune.learning_rate={list(self.rates)} names a rate twice: leave one out")
        return self
