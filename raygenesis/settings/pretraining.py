"""Settings of a pretext task, its network and its training."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from raygenesis.settings.section import Count, NonNegative, Positive, Section

# What each side of an image must be a multiple of: the U-Net halves it three times (METHOD), a ResNet five times.
Network = Literal[
    "unet", "segresnet", "resnet10", "resnet18", "resnet34", "resnet18-b", "resnet34-b", "resnet50", "resnet101",
    "resnet152", "resnet200", "i3d",
]  # fmt: skip
NETWORK_DIVISORS = {name: 8 if name in ("unet", "segresnet") else 32 for name in get_args(Network)}


class PretrainingSettings(Section):
    """A pretext task, its network and its training (paper sections 2.2, 2.3 and 3)."""

    pretext: str = Field("semantic-genesis", description="Pretext task: `raygenesis pretexts` lists them.")
    corruption: str | None = Field(None, description="Corruption set; the pretext task's own when null.")
    lambda_rec: NonNegative | None = Field(None, description="Weight of restoration; the pretext task's when null.")
    lambda_cls: NonNegative | None = Field(
        None,
        description="Weight of the head's task in the joint phase; the pretext task's when null. With 0 nothing is "
        "classified, not even at first.",
    )
    num_neighbours: Count | None = Field(
        None, description="Use only patterns of rank < K (of random crops: K scans); all when null."
    )
    num_coordinates: Count | None = Field(
        None, description="Use only coordinates < C (of random crops: C of each scan); all when null."
    )
    network: Network = Field(
        "unet",
        description="The method's U-Net, or MONAI's SegResNet, or its U-Net over a ResNet (`-b`: with torchvision's "
        "shortcuts), or I3D in 3D.",
    )
    base_width: Count = Field(
        32, description="Channels of the first convolution of `unet` (paper: 32) and `segresnet` (a multiple of 8)."
    )
    norm: Literal["batch", "batch-statistics", "instance", "group"] = Field(
        "batch",
        description="Norm of `unet`. `batch-statistics`: batch norm with the batch's own statistics in evaluation too, "
        "as in the published code.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16, fp16: autocast of the forward pass; fp16 with a loss that is scaled."
    )
    channels_last: bool = Field(True, description="Keep the channels of a voxel together in memory.")
    compile: bool = Field(False, description="torch.compile the network: minutes at the start, faster steps on a GPU.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again instead of keeping them: less memory, a third more time."
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="Global: shared by all workers.")
    num_pieces: Count = Field(
        1,
        description="A batch is gone through in so many pieces, one after another, for less memory; batch norm then "
        "sees one piece at a time.",
    )
    learning_rate: Positive = Field(1e-3, description="Of Adam, to begin with.")
    classification_learning_rate: Positive | None = Field(
        None, description="While classification is learnt alone; learning_rate when null."
    )
    schedule: Literal["step", "cosine"] = Field(
        "step", description="step: multiplied by decay_factor every decay_epochs, as in the paper; cosine: down to 0."
    )
    decay_epochs: Count = Field(40, description="Of the schedule `step`.")
    decay_factor: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="Of the schedule `step`.")
    warmup_epochs: NonNegative = Field(0.0, description="The learning rate rises from 0 for so many epochs.")
    clip_norm: Positive | None = Field(None, description="A longer gradient is shortened to this norm.")
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Validate and keep a moving average of the weights with this decay, such as 0.999."
    )
    num_classification_epochs: Annotated[int, Field(ge=0)] = Field(20, description="Classification alone, first.")
    num_joint_epochs: Annotated[int, Field(ge=0)] = Field(200, description="Then both tasks together.")
    patience: Count = Field(50, description="Joint epochs without a better validation loss before stopping.")
    num_workers: Count | tuple[Count, Count] = Field(
        1,
        description="Ray Train workers, which share each batch; [fewest, most]: as many as the cluster has room for, "
        "and fewer when it loses machines. What is learnt does not depend on it.",
    )
    use_gpu: bool = Field(False, description="One GPU per worker (nccl); otherwise CPU (gloo).")
    memory_gib: NonNegative = Field(
        4.0,
        description="Selected patterns of up to so many GiB, encoded, are kept in each machine's memory; of more, each "
        "batch is read from the store's files.",
    )
    checkpoint_seconds: NonNegative = Field(60.0, description="After a kill at the most so much is computed again.")
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        ("tensorboard",), description="Where figures go besides the run's own tables."
    )

    @property
    def fewest_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _trains_something(self) -> PretrainingSettings:
        if self.num_classification_epochs + self.num_joint_epochs == 0:
            raise ValueError(
                "pretraining.num_classification_epochs and pretraining.num_joint_epochs are both 0: give one of "
                "them at least 1"
            )
        if self.lambda_rec == 0 and self.lambda_cls == 0:
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
        return self
