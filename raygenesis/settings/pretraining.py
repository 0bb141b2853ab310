"""Settings of a pretext task, its network and its training."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from raygenesis.settings.section import Count, NonNegative, Positive, Section

# What each side of an image must be a multiple of: the U-Net halves it three times, a ResNet five times.
Network = Literal[
    "unet", "segresnet", "resnet10", "resnet18", "resnet34", "resnet18-b", "resnet34-b", "resnet50", "resnet101",
    "resnet152", "resnet200", "i3d",
]  # fmt: skip
NETWORK_DIVISORS = {name: 8 if name in ("unet", "segresnet") else 32 for name in get_args(Network)}

# Settings of pretraining that say how a run is executed: the result does not depend on them.
EXECUTION_SETTINGS = {"num_workers", "use_gpu", "memory_gib", "num_decoders", "checkpoint_seconds", "trackers"}


class PretrainingSettings(Section):
    """A pretext task, its network and its training (paper sections 2.2, 2.3 and 3)."""

    pretext: str = Field("semantic-genesis", description="Pretext task; `raygenesis pretexts` lists them.")
    corruption: str | None = Field(
        None, description="Set of corruptions that the network learns to undo. When null, the pretext task's own."
    )
    lambda_rec: NonNegative | None = Field(
        None, description="Weight of the restoration loss. When null, the pretext task's own."
    )
    lambda_cls: NonNegative | None = Field(
        None,
        description="Weight of the classification loss in the joint phase. When null, the pretext task's own. With 0 "
        "the phase of classification alone is left out too.",
    )
    lambda_pair: NonNegative | None = Field(
        None,
        description="Weight of the contrast in the joint phase: two patterns of one class from different patients, one "
        "seen by the network and one by the moving average of its weights (give `average_decay`), against patterns of "
        "other classes in the batch. When null, the pretext task's own.",
    )
    lambda_cross: NonNegative | None = Field(
        None,
        description="Weight of cross-restoration in the joint phase: restoring a pattern with the bottleneck of "
        "another one of its class, from a different patient. When null, the pretext task's own.",
    )
    overlap: Literal["soft", "ignore"] | None = Field(
        None,
        description="What classification makes of classes whose boxes overlap. `soft`: the target is a distribution "
        "over classes, by the share of the pattern's volume that lies in each box; `ignore`: other classes that share "
        "more than half of it are left out of the softmax. When null, each class is distinguished from all others.",
    )
    num_neighbours: Count | None = Field(
        None,
        description="Train on patterns of the first K neighbours only (random crops: of K scans). When null, on all.",
    )
    num_coordinates: Count | None = Field(
        None,
        description="Train on the first C coordinates only (random crops: on C crops per scan). When null, on all.",
    )
    network: Network = Field(
        "unet",
        description="Network: `unet` is the method's U-Net; `segresnet` is MONAI's; `resnet…` is MONAI's U-Net over a "
        "ResNet (`-b`: with torchvision's shortcuts); `i3d` is Inflated Inception, 3D only.",
    )
    base_width: Count = Field(
        32, description="Channels of the first convolution of `unet` (paper: 32) and `segresnet` (a multiple of 8)."
    )
    norm: Literal["batch", "batch-statistics", "instance", "group"] = Field(
        "batch",
        description="Normalisation layers of `unet`. `batch-statistics`: batch normalisation that uses the batch's own "
        "statistics in evaluation too, as the published code does.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Precision of the forward pass; bf16 and fp16 use autocast, and fp16 also scales the loss. `auto`: "
        "bf16 on GPUs that compute in it and on CPUs with AMX, otherwise fp32; what is begun goes on in its precision, "
        "which its manifest records.",
    )
    channels_last: bool = Field(True, description="Use PyTorch's channels-last memory format.")
    compile: bool = Field(
        False, description="Compile the network with `torch.compile`: minutes at the start, then faster steps on a GPU."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass instead of storing them: less memory, and steps that "
        "take a third longer.",
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(
        64, description="Cubes per optimiser step over all workers (64 on 2 GPUs = 32 each)."
    )
    num_pieces: Count = Field(
        1,
        description="Number of pieces that a batch is split into, processed one after another (gradient accumulation), "
        "to save memory; batch normalisation then sees one piece at a time.",
    )
    window_groups: Count | None = Field(
        None,
        description="Row groups, of 16 patterns each, among whose patterns the training order is random at any time; "
        "a larger store is read once an epoch, in streams. When null, as many as hold 1 GiB of cubes, or 128.",
    )
    learning_rate: Positive = Field(1e-3, description="Initial learning rate of the Adam optimiser.")
    classification_learning_rate: Positive | None = Field(
        None, description="Learning rate of the phase of classification alone. When null, `learning_rate`."
    )
    scale_learning_rate: Count | None = Field(
        None,
        description="Batch size that the learning rates were chosen for, such as 64: another `batch_size` multiplies "
        "them by its ratio to this one (Goyal et al. 2017); a larger one wants `warmup_epochs`. When null, the rates "
        "are used as they are.",
    )
    joint_encoder_rate: Positive | None = Field(
        None,
        description="Factor, such as 0.1, of the encoder's learning rate in the joint phase: classification has taught "
        "it already. When null, 1. Pretext tasks with one part have no joint phase.",
    )
    schedule: Literal["step", "cosine"] = Field(
        "step",
        description="Schedule of the learning rate. `step`: multiplied by `decay_factor` every `decay_epochs`, as in "
        "the paper; `cosine`: annealed to 0.",
    )
    decay_epochs: Count = Field(40, description="Epochs between two decays of the schedule `step`.")
    decay_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Factor of each decay of the schedule `step`."
    )
    warmup_epochs: NonNegative = Field(
        0.0, description="Epochs, or a fraction of one, over which the learning rate rises linearly from 0."
    )
    clip_norm: Positive | None = Field(
        None, description="Maximum norm of the gradient; longer ones are scaled down. When null, none is."
    )
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay, such as 0.999, of an exponential moving average of the weights, which is validated and "
        "exported in their place. When null, the weights themselves are.",
    )
    num_classification_epochs: Annotated[int, Field(ge=0)] = Field(
        20, description="Epochs of classification alone, before the joint phase."
    )
    num_joint_epochs: Annotated[int, Field(ge=0)] = Field(
        200, description="Maximum number of epochs of both tasks together; `patience` may stop earlier."
    )
    scale_stages: bool | None = Field(
        None,
        description="Learn coarse to fine: the epochs of each phase are divided evenly among the store's scales, the "
        "largest `extent_mm` first, and an epoch learns from the cubes of its scale alone (scales of one extent count "
        "as one). The best epoch is one of the last scale's, and `patience` counts those. When null, every epoch "
        "learns from all scales.",
    )
    patience: Count = Field(50, description="Stop after this many joint epochs without a lower validation loss.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None,
        description="Random seed of the training alone: first weights, order of the cubes, corruptions. When null, "
        "`seed`, which also decides who is held out.",
    )
    num_workers: Count | tuple[Count, Count] = Field(
        1,
        description="Number of Ray Train workers, which share each batch; or [fewest, most]: as many as the cluster "
        "has room for, fewer when it loses machines. The result does not depend on it.",
    )
    use_gpu: bool = Field(False, description="Train on one GPU per worker (NCCL) instead of CPUs (Gloo).")
    memory_gib: NonNegative = Field(
        4.0,
        description="Keep training patterns in each worker's memory if their compressed size, in GiB, is no more; "
        "otherwise read them from the store once an epoch. The result does not depend on it.",
    )
    num_decoders: Count = Field(
        1,
        description="Threads of each worker that read and decode patterns ahead. The result does not depend on it.",
    )
    checkpoint_seconds: NonNegative = Field(
        60.0, description="Seconds between checkpoints: the most work that a crash can lose."
    )
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        ("tensorboard",), description="Experiment trackers that figures are sent to, besides the run's own tables."
    )

    @property
    def fewest_workers(self) -> int:
        """The number of workers, or the fewest."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The number of workers, or the most."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _trains_something(self) -> PretrainingSettings:
        if self.num_classification_epochs + self.num_joint_epochs == 0:
            raise ValueError(
                "pretraining.num_classification_epochs and pretraining.num_joint_epochs are both 0: give one of "
                "them at least 1"
            )
        if self.lambda_rec == 0 and self.lambda_cls == 0 and not (self.lambda_pair or self.lambda_cross):
            raise ValueError("pretraining.lambda_rec and pretraining.lambda_cls are both 0: raise one of them")
        if self.network == "segresnet" and self.base_width % 8:
            raise ValueError(f"pretraining.base_width={self.base_width} must be a multiple of 8 for network=segresnet")
        if self.network != "unet" and self.norm != "batch":
            raise ValueError(
                f"pretraining.norm={self.norm}: pretraining.network={self.network} brings its own norms; leave norm "
                "out, or choose network=unet"
            )
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "pretraining.compile and pretraining.gradient_checkpointing are both true: torch cannot compile what "
                "is computed twice; choose one"
            )
        return self

    @model_validator(mode="after")
    def _workers_have_something_to_do(self) -> PretrainingSettings:
        if not isinstance(self.num_workers, int) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(
                f"pretraining.num_workers={list(self.num_workers)} must be a number, or [fewest, most] with the fewest "
                "first"
            )
        if self.batch_size < self.num_pieces * self.most_workers:
            raise ValueError(
                f"pretraining.batch_size={self.batch_size} is too small for {self.num_pieces} piece(s) "
                f"(pretraining.num_pieces) shared by {self.most_workers} worker(s) (pretraining.num_workers): each "
                "needs at least one cube"
            )
        if self.warmup_epochs >= self.num_classification_epochs + self.num_joint_epochs:
            raise ValueError(
                f"pretraining.warmup_epochs={self.warmup_epochs:g} must be less than the "
                f"{self.num_classification_epochs + self.num_joint_epochs} epochs of training"
            )
        if self.scale_learning_rate and self.batch_size > self.scale_learning_rate and not self.warmup_epochs:
            raise ValueError(
                f"pretraining.scale_learning_rate={self.scale_learning_rate} raises the learning rate for batches of "
                f"{self.batch_size}, at which training diverges from the start: give pretraining.warmup_epochs, such "
                "as 1"
            )
        return self
