"""The one tree of validated settings: YAML presets plus dotted overrides.

Defaults are the paper's 3D numbers (Haghighi et al. 2020, section 3); presets under `jobs/presets/`
say only what they change.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Shape = Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
ExtentMm = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=3)]
Labelled = Annotated[int, Field(ge=2)] | Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9](\.[0-9]+)?)%$")]

# What each side of an image must be a multiple of: the U-Net halves it three times (METHOD), a ResNet five times.
Network = Literal[
    "unet", "segresnet", "resnet10", "resnet18", "resnet34", "resnet18-b", "resnet34-b", "resnet50", "resnet101",
    "resnet152", "resnet200", "i3d",
]  # fmt: skip
NETWORK_DIVISORS = {name: 8 if name in ("unet", "segresnet") else 32 for name in get_args(Network)}
AUTOENCODER_DIVISOR = 8


class Section(BaseModel):
    """A part of the tree: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ArchiveSettings(Section):
    """Scans in, OME-Zarr out."""

    subject_pattern: str | None = Field(
        None,
        description="Regular expression with one group, searched in a scan's path below the scans "
        "folder; the group is the subject. Without it: DICOM's patient id, else BIDS `sub-…`, else one subject a file.",
    )
    keep_ids: bool = Field(False, description="Keep subjects' names and scans' paths instead of keyed hashes.")
    fourth_axis: Literal["refuse", "split", "channels"] = Field(
        "refuse", description="Scans with a fourth axis: a failure, one volume a time point, or channels."
    )
    spacing_mm: ExtentMm | None = Field(
        None, description="Resample every scan to this voxel size, z y x (2D: y x); the scanner's own when null."
    )
    fill_nan: float | None = Field(
        None, description="Stored in place of NaN and infinity; a scan that has them is a failure when null."
    )
    crop_to_body: bool = Field(False, description="Leave out the air around the body.")
    max_scan_gib: Positive = Field(16.0, description="A scan of more voxel bytes than this is refused.")
    coarse_size: Count = Field(64, description="The pyramid ends where no side is longer than this.")
    chunk: Count = Field(64, description="Side of a Zarr chunk in voxels.")
    shard: Count = Field(256, description="Side of a Zarr shard in voxels; a multiple of the chunk.")

    @model_validator(mode="after")
    def _subject_pattern_compiles(self) -> ArchiveSettings:
        try:
            re.compile(self.subject_pattern or "")
        except re.error as error:
            raise ValueError(
                f"archive.subject_pattern={self.subject_pattern!r} is not a regular expression: {error}"
            ) from None
        return self

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> ArchiveSettings:
        if self.shard % self.chunk:
            raise ValueError(f"archive.shard={self.shard} must be a multiple of archive.chunk={self.chunk}")
        return self


class IntensitySettings(Section):
    """How stored values become [0, 1] when they are read."""

    window: tuple[float, float] | None = Field(
        None,
        description="Values (after rescale slope and intercept, so HU for CT) mapped to 0 and 1. "
        "Without it: each volume's own 0.5 and 99.5 percentiles, as for MR.",
    )
    channel: Annotated[int, Field(ge=0)] = Field(0, description="Which channel of scans that have several, from 0.")

    @model_validator(mode="after")
    def _window_rises(self) -> IntensitySettings:
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"intensity.window={list(self.window)} must be [low, high] with low < high")
        return self


class AutoencoderSettings(Section):
    """The auto-encoder whose latent vector says which patients are alike (paper section 2.1)."""

    input_shape: Shape = Field((64, 64, 64), description="Voxels z y x (2D: y x) a whole scan is resampled to.")
    base_width: Count = Field(16, description="Channels of the first level; each further level doubles them.")
    latent_size: Count = Field(512, description="Length of the embedding.")
    num_epochs: Count = Field(100, description="At the most.")
    batch_size: Count = Field(8, description="Scans in a step.")
    learning_rate: Positive = Field(1e-3, description="Of Adam.")
    patience: Count = Field(10, description="Epochs without a better validation error before stopping.")
    max_volumes: Count = Field(10_000, description="Train on at most this many scans (a seeded sample).")


class EmbeddingSettings(Section):
    """Embedding the whole archive through an actor pool."""

    encoder: str = Field(
        "autoencoder",
        description="What describes a whole scan: `autoencoder` (trained on the archive), `pca` (the linear baseline "
        "of the same sizes), or the path of weights of ours: an auto-encoder's or PCA's file, or a run's folder.",
    )
    num_actors: Count | None = Field(
        None,
        description="Actors in the pool; when null as many as the cluster has cores for, or GPUs with num_gpus.",
    )
    num_gpus: NonNegative = Field(0.0, description="GPUs for each actor; a fraction lets several share one.")
    volumes_per_part: Count = Field(128, description="Scans in one Parquet part: the unit of resuming.")


class IndexSettings(Section):
    """Nearest neighbours among embeddings (L2)."""

    method: Literal["auto", "exact", "hnsw"] = Field(
        "auto", description="auto: whichever of exact search and HNSW is cheaper for these references and scans."
    )
    volumes_per_shard: Count = Field(100_000, description="Scans in one HNSW graph.")
    m: Annotated[int, Field(ge=2)] = Field(16, description="Links of a scan in a graph.")
    ef_construction: Count = Field(200, description="Width of the search that places a scan in a graph.")
    ef: Count = Field(200, description="Width of a search, to begin with; doubled until min_recall is met.")
    min_recall: Annotated[float, Field(gt=0, le=1)] = Field(
        0.99, description="Share of the true neighbours that the graphs must find, measured on a sample of searches."
    )


class Scale(Section):
    """One size of crop: physical extent and how much each crop departs from it at random."""

    extent_mm: ExtentMm = Field(description="Extent z y x (2D: y x) in mm.")
    extent_jitter: Fraction = Field(0.0, description="Extents vary by ± this share in-plane (not along z).")
    shift_mm: NonNegative = Field(0.0, description="Positions vary by ± this in-plane (not along z).")


class DiscoverySettings(Section):
    """Self-discovery of anatomical patterns (paper section 2.1, appendix A)."""

    num_references: Count = Field(1, description="R: reference patients. Labels = R × C.")
    num_coordinates: Count = Field(44, description="C: coordinates per reference.")
    num_neighbours: Count = Field(200, description="K: most similar patients, the reference among them.")
    num_validation_neighbours: Count = Field(30, description="Most similar held-out patients per reference.")
    reference_choice: Literal["random", "spread"] = Field(
        "random", description="References drawn at random, or each the patient least like those before it."
    )
    duplicate_distance: Fraction = Field(
        0.1,
        description="Of patients whose embeddings lie nearer to each other than this share of the distance between two "
        "random patients only the first counts: the same scan under two names. 0 keeps all but exact copies.",
    )
    cube_shape: Shape = Field((32, 64, 64), description="Voxels z y x (2D: y x) of a pattern.")
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = Field(
        (
            Scale(extent_mm=(40.0, 45.0, 45.0)),
            Scale(extent_mm=(40.0, 45.0, 45.0), extent_jitter=0.22, shift_mm=7.0),
            Scale(extent_mm=(40.0, 45.0, 45.0), extent_jitter=0.22, shift_mm=7.0),
        ),
        description="Each coordinate is cropped once for each of these: extent_mm z y x (2D: y x), which varies by "
        "± the share extent_jitter, and a position that varies by ± shift_mm, both in-plane.",
    )
    num_crops: Count | None = Field(
        None,
        description="Random crops of each scan, for pretext tasks that need no discovery (`raygenesis crop`); when "
        "null so many that they are as many in all as R × K × C × scales patterns.",
    )
    min_distance_mm: NonNegative = Field(10.0, description="Least distance between two coordinates.")
    min_content: Fraction = Field(
        0.6,
        description="A crop is kept where at least this share of its voxels shows anatomy: where the values around "
        "a voxel vary by a tenth of the whole scan's standard deviation. Air and flat tissue fail in any modality.",
    )
    box: tuple[tuple[float, float], ...] | None = Field(
        None,
        description="Coordinates lie in this part of the reference: [from, to] as fractions of each side, z y x (2D: "
        "y x), such as [[0.2, 0.8], [0, 0.5], [0, 1]]; anywhere when null.",
    )
    correspondence: Literal["relative", "physical"] = Field(
        "relative",
        description="The same coordinate in another patient: the same fraction of each side, or the same "
        "offset in mm from the centre of the body.",
    )
    alignment: Literal["none", "rigid", "affine"] = Field(
        "none",
        description="Register each patient to the reference instead, at the coarse level: for archives in which "
        "patients lie differently.",
    )
    patterns_per_part: Count = Field(1024, description="Patterns in one Parquet part: the unit of resuming.")

    @model_validator(mode="after")
    def _box_is_inside(self) -> DiscoverySettings:
        box = self.box or ()
        for low, high in box:
            if not 0 <= low < high <= 1:
                raise ValueError(f"discovery.box={[list(side) for side in box]}: needs 0 <= from < to <= 1 a side")
        return self


class PretrainingSettings(Section):
    """A pretext task, its network and its training (paper sections 2.2, 2.3 and 3)."""

    pretext: str = Field("semantic-genesis", description="Pretext task: `raygenesis pretexts` lists them.")
    corruption: str | None = Field(None, description="Corruption set; the pretext task's own when null.")
    lambda_rec: NonNegative | None = Field(None, description="Weight of restoration; the pretext task's when null.")
    lambda_cls: NonNegative | None = Field(None, description="Weight of the head's task; the pretext task's when null.")
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
    num_gpus: NonNegative | None = Field(
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
        if self.num_gpus is not None and self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError(f"sweep.num_gpus={self.num_gpus:g}: give a fraction below 1 or a whole number")
        if self.objective == "target" and self.target is None:
            raise ValueError("sweep.objective=target needs a target: give sweep.target, a file that describes it")
        return self


class FinetuneSettings(Section):
    """Learning a target task from few labelled subjects, from each initialisation."""

    mode: Literal["full", "encoder", "frozen", "knn"] = Field(
        "full",
        description="What comes from the initialisation. full: encoder and decoder (of a classifier, the encoder); "
        "encoder: the encoder, with a new decoder; frozen: the encoder, which stays as it is (linear probe); knn: "
        "nothing is trained, labelled subjects with like embeddings answer.",
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
    k: Count = Field(5, description="Neighbours that answer in mode knn.")
    num_gpus: NonNegative | None = Field(
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
    def _gpus_are_whole_or_shared(self) -> FinetuneSettings:
        if self.num_gpus is not None and self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError(f"finetune.num_gpus={self.num_gpus:g}: give a fraction below 1 or a whole number")
        return self

    @model_validator(mode="after")
    def _labelled_differ(self) -> FinetuneSettings:
        if len(set(self.num_labelled)) < len(self.num_labelled):
            raise ValueError(f"finetune.num_labelled={list(self.num_labelled)} names a number twice: leave one out")
        return self


class PriceSettings(Section):
    """What the cluster costs, in whatever currency, for `plan` and `status`."""

    cpu_hour: NonNegative | None = Field(None, description="A core for an hour. Without any price no costs are told.")
    gpu_hour: NonNegative | None = Field(None, description="A GPU for an hour.")
    gib_month: NonNegative | None = Field(None, description="A GiB stored for a month.")

    def of(self, core_seconds: float, gpu_seconds: float, gib: float = 0.0) -> float | None:
        """What so much costs; None where no price is given."""
        prices = (self.cpu_hour, self.gpu_hour, self.gib_month)
        amounts = (core_seconds / 3600, gpu_seconds / 3600, gib)
        if prices == (None, None, None):
            return None
        return sum(amount * (price or 0.0) for amount, price in zip(amounts, prices, strict=True))


class Settings(Section):
    """The whole tree. `raygenesis config --preset NAME` prints it resolved."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Of everything that is drawn, in every stage.")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Share of the subjects held out of every training, auto-encoder included."
    )
    archive: ArchiveSettings = ArchiveSettings()
    intensity: IntensitySettings = IntensitySettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    index: IndexSettings = IndexSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    sweep: SweepSettings = SweepSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    prices: PriceSettings = PriceSettings()

    _given: frozenset[str] = PrivateAttr(default=frozenset())

    @property
    def given(self) -> frozenset[str]:
        """Dotted keys that were given one by one, on the command line: they count more than what a file says."""
        return self._given

    @property
    def ndim(self) -> int:
        """Spatial dimensions: 3 or 2."""
        return len(self.discovery.cube_shape)

    @model_validator(mode="after")
    def _shapes_agree(self) -> Settings:
        shapes = {
            "discovery.cube_shape": self.discovery.cube_shape,
            "autoencoder.input_shape": self.autoencoder.input_shape,
        }
        for key, shape in shapes.items():
            if len(shape) != self.ndim:
                raise ValueError(f"{key}={list(shape)} has {len(shape)} sides but discovery.cube_shape has {self.ndim}")
            network, divisor = "the auto-encoder", AUTOENCODER_DIVISOR
            if not key.startswith("autoencoder"):
                network = f"pretraining.network={self.pretraining.network}"
                divisor = NETWORK_DIVISORS[self.pretraining.network]
            if any(side % divisor for side in shape):
                raise ValueError(f"{key}={list(shape)}: {network} needs each side to be a multiple of {divisor}")
        if self.pretraining.network == "i3d" and self.ndim != 3:
            raise ValueError("pretraining.network=i3d takes 3D images, and discovery.cube_shape has 2 sides")
        for scale in self.discovery.scales:
            if len(scale.extent_mm) != self.ndim:
                raise ValueError(
                    f"discovery.scales: extent_mm={list(scale.extent_mm)} needs {self.ndim} numbers, one a side "
                    "of discovery.cube_shape"
                )
        box = self.discovery.box
        if box is not None and len(box) != self.ndim:
            raise ValueError(f"discovery.box has {len(box)} sides but discovery.cube_shape has {self.ndim}")
        return self
