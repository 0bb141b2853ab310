"""A pretext task on a pattern store, as an experiment of the epoch loop (paper sections 2.2, 2.3 and 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raygenesis.errors import SettingsError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import Prediction, PretextNetwork, enable_gradient_checkpointing
from raygenesis.pretraining import monitors
from raygenesis.pretraining.contrast import PROJECTION_SIZE, class_sums, contrast, separation, taught
from raygenesis.pretraining.corruption_sets import CORRUPTIONS, CorruptionSet
from raygenesis.pretraining.corruptions import check_fits, corrupt, masked_places
from raygenesis.pretraining.draws import Draws
from raygenesis.pretraining.overlap import OVERLAP_LOSSES, ClassBoxes, shares_of
from raygenesis.pretraining.pairs import epoch_pairs
from raygenesis.pretraining.pretexts import (
    CLASSIFICATION,
    CONTRAST,
    CROSS_RESTORATION,
    RESTORATION,
    Pretext,
    pretext_of,
)
from raygenesis.pretraining.puzzles import PUZZLES, Puzzle
from raygenesis.pretraining.restoration import blank_error, restoration_error
from raygenesis.pretraining.schedule import learning_rate
from raygenesis.pretraining.stages import check_epochs, stage_of
from raygenesis.settings import NETWORK_DIVISORS, PretrainingSettings
from raygenesis.training.devices import is_fused, send
from raygenesis.training.experiment import Tuning
from raygenesis.training.feeding import Batch
from raygenesis.training.precision import autocast
from raygenesis.training.records import EpochRow

# Name of the phase in which all parts of a loss are learnt; a phase of one part has that part's name.
JOINT = "joint"
MEMORY_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}

# Held-out cubes are corrupted alike in every epoch, so that their errors can be compared; training counts from 0.
VALIDATION_EPOCH = -1


class PretextBatch(NamedTuple):
    """A batch as the network sees it.

    shown: images, float32 [n × images of each, 1, z, y, x]; original: what the decoder should restore, float32 [n, 1,
    z, y, x]; classes: pseudo-labels, int64 [n], without meaning for random crops; answers: what the head should answer,
    int64 [n] or [n, several], if there is a head; masked: the voxels that are to be restored, bool like original, all
    when None; shares: how much of each cube's box lies in those of the classes, float32 [n, num_classes], where
    classification allows for it.
    """

    shown: torch.Tensor
    original: torch.Tensor
    classes: torch.Tensor
    answers: torch.Tensor | None
    masked: torch.Tensor | None = None
    shares: torch.Tensor | None = None


@dataclass(frozen=True)
class PretextTask:
    """A pretext task on cubes of one store, as an `Experiment`.

    Attributes:
        settings: The section `pretraining`.
        seed: Seed of weights, corruptions and puzzles.
        sample_shape: Sides of a cube, z y x (2D: y x).
        num_references: References of the store, R.
        num_coordinates: Coordinates in use, C; the pseudo-label of a pattern is reference × C + coordinate.
        stages: Numbers of the scales that are learnt from together, one stage after the other in each phase; all scales
            in every epoch without stages.
        boxes: Where the classes lie, which `pretraining.overlap` needs.

    Raises:
        SettingsError: There is no such task, its puzzle, corruption or network does not fit the cubes, or a phase is
            too short for the stages.
    """

    settings: PretrainingSettings
    seed: int
    sample_shape: tuple[int, ...]
    num_references: int
    num_coordinates: int
    name: str = "pretrain"
    sample_key: str = "pattern_id"
    stages: tuple[tuple[int, ...], ...] = ()
    boxes: ClassBoxes | None = None

    def __post_init__(self) -> None:
        # Looked up here, once: an entry that a script adds to a table is there, but not in the workers' tables.
        _ = self.puzzle
        check_fits(self.sample_shape, self.corruption)
        check_epochs(self.phases, len(self.stages))
        network, divisor = self.settings.network, NETWORK_DIVISORS[self.settings.network]
        if any(side % divisor for side in self.sample_shape):
            raise SettingsError(
                f"pretraining.network={network} needs each side of a cube to be a multiple of {divisor}, and the "
                f"store's are {self.sample_shape}: choose another network, or make the store again with another "
                "discovery.cube_shape"
            )

    @cached_property
    def pretext(self) -> Pretext:
        return pretext_of(self.settings)

    @cached_property
    def corruption(self) -> CorruptionSet:
        return CORRUPTIONS[self.pretext.corruption]

    @cached_property
    def puzzle(self) -> Puzzle | None:
        """The puzzle of the network's head, if it has one."""
        if self.pretext.puzzle is None:
            return None
        divisor = NETWORK_DIVISORS[self.settings.network]
        return PUZZLES[self.pretext.puzzle](self.sample_shape, divisor, self.num_references * self.num_coordinates)

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            ndim=len(self.sample_shape),
            network=self.settings.network,
            base_width=self.settings.base_width,
            norm=self.settings.norm,
            head=self.puzzle.head if self.puzzle else None,
            num_classes=self.puzzle.num_classes if self.puzzle else 0,
            restores=self.pretext.lambda_rec is not None,
            skips=self.pretext.skips,
            projection_size=PROJECTION_SIZE if self.pretext.lambda_pair else 0,
        )

    @property
    def shown_shape(self) -> tuple[int, ...]:
        """What the network sees of a cube: [images of each, z, y, x] (2D: without z)."""
        return self.puzzle.shown_shape if self.puzzle else (1, *self.sample_shape)

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing; None where nothing is classified."""
        return 1 / self.puzzle.num_classes if self.puzzle else None

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def num_epochs(self) -> int:
        return self.settings.num_classification_epochs + self.settings.num_joint_epochs

    def build(self) -> PretextNetwork:
        """Build the network, its weights drawn from the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = PretextNetwork(self.architecture)
        if self.settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        if self.settings.compile:
            model.compile()
        if self.settings.channels_last:
            model = model.to(memory_format=self._memory_format)  # type: ignore[call-overload] # not among the overloads
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        parameters: Any = model.parameters()
        if self.settings.joint_encoder_rate is not None:
            encoder: list[nn.Parameter] = []
            others: list[nn.Parameter] = []
            for name, weights in model.named_parameters():
                (encoder if name.startswith("encoder.") else others).append(weights)
            parameters = [{"params": encoder}, {"params": others}]
        return torch.optim.Adam(parameters, lr=self.settings.learning_rate, fused=is_fused(model))

    def rate_factors(self, epoch: int) -> Sequence[float]:
        factor = self.settings.joint_encoder_rate
        if factor is None:
            return (1.0,)
        return (factor if self.phase(epoch) == JOINT else 1.0, 1.0)

    def phase(self, epoch: int) -> str:
        """Name of the phase of an epoch.

        Tasks with several parts learn to classify first; those with one have one phase, just as long. So has a task
        with several parts that does not classify, or whose λ of classification is 0.
        """
        if len(self.pretext.parts) == 1:
            return self.pretext.parts[0]
        first = self.settings.num_classification_epochs if self.pretext.lambda_cls else 0
        return CLASSIFICATION if epoch < first else JOINT

    @cached_property
    def phases(self) -> tuple[str, ...]:
        """The phase of every epoch."""
        return tuple(self.phase(epoch) for epoch in range(self.num_epochs))

    def scales(self, epoch: int) -> tuple[int, ...] | None:
        """Numbers of the scales that an epoch learns from; None for all."""
        return self.stages[stage_of(epoch, self.phases, len(self.stages))] if self.stages else None

    def learns_from(self, columns: Mapping[str, NDArray[Any]], epoch: int) -> NDArray[np.bool_] | None:
        scales = self.scales(epoch)
        return None if scales is None else np.isin(columns["scale"], scales)

    @property
    def tuning(self) -> Tuning:
        return Tuning(
            num_pieces=self.settings.num_pieces,
            clip_norm=self.settings.clip_norm,
            average_decay=self.settings.average_decay,
            scales_loss=self.settings.precision == "fp16",
        )

    def learning_rate(self, epoch: int, share: float) -> float:
        return learning_rate(self.settings, epoch, share, alone=self.phase(epoch) == CLASSIFICATION)

    def pairs(self, columns: Mapping[str, NDArray[Any]], epoch: int) -> NDArray[np.int64] | None:
        """Pairs of patterns of one class from different patients, where the task learns from them."""
        if not self.pretext.learns_from_pairs:
            return None
        _, patients = np.unique(columns["volume_id"].astype(str), return_inverse=True)
        return epoch_pairs(self._labels(columns), patients, self.seed, epoch)

    def learns(self, part: str, epoch: int) -> bool:
        """Whether a part of the loss, with a weight above 0, is learnt in this epoch."""
        return bool(self.pretext.weights[part]) and self.phase(epoch) in (part, JOINT)

    def restores(self, epoch: int) -> bool:
        """Whether the decoder learns in this epoch to restore what is shown."""
        return self.learns(RESTORATION, epoch)

    def decodes(self, epoch: int) -> bool:
        """Whether the decoder is trained in this epoch."""
        return self.restores(epoch) or self.learns(CROSS_RESTORATION, epoch)

    def begin_epoch(self, model: nn.Module, epoch: int) -> str:
        """Leave out the decoder and the projection where they are not trained."""
        if model.decoder is not None:
            model.decoder.requires_grad_(self.decodes(epoch))
        if model.projection is not None:
            model.projection.requires_grad_(self.learns(CONTRAST, epoch))
        return self.phase(epoch)

    def losses(
        self, model: nn.Module, batch: Batch, epoch: int, teacher: nn.Module | None = None
    ) -> dict[str, torch.Tensor]:
        return self.losses_of(model, self.make_batch(batch, epoch), epoch, teacher)

    def losses_of(
        self, model: nn.Module, batch: PretextBatch, epoch: int, teacher: nn.Module | None = None
    ) -> dict[str, torch.Tensor]:
        """The losses of a batch that is corrupted and whose questions are asked; otherwise as `losses`."""
        prediction = self._predict(
            model, batch.shown, restore=self.restores(epoch), cross=self.learns(CROSS_RESTORATION, epoch)
        )
        parts = self._parts(prediction, batch)
        if self.learns(CONTRAST, epoch):
            assert isinstance(teacher, PretextNetwork) and prediction.projected is not None
            original = batch.original.contiguous(memory_format=self._memory_format)
            with autocast(original.device.type, self.settings.precision):
                keys = taught(teacher, original)
            of_piece = 2 * math.ceil(self.batch_size / 2 / self.settings.num_pieces)
            found = contrast(prediction.projected, keys, batch.classes, of_piece)
            parts[CONTRAST], parts["contrast_chance"] = found
        losses = {name: values.mean() for name, values in parts.items()}
        if self.phase(epoch) == CLASSIFICATION:
            return {"loss": losses["classification"], **losses}
        return {"loss": self._joint(losses), **losses}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sums; `identity` and `blank` are the errors of answering the corrupted cube as it is, and its mean value.

        Held-out patterns come without partners: `loss` is the joint loss of classification and restoration alone.
        """
        pretext_batch = self.make_batch(batch, VALIDATION_EPOCH)
        prediction = self._predict(model, pretext_batch.shown, restore=True)
        parts = self._parts(prediction, pretext_batch)
        if parts:  # not of contrast alone
            parts["loss"] = self._joint(parts)
        if prediction.restored is not None:
            original, masked = pretext_batch.original, pretext_batch.masked
            parts["identity"] = restoration_error(pretext_batch.shown, original, masked)
            parts["blank"] = blank_error(original, masked)
        vectors_each = len(prediction.embedding) // len(batch.cubes)
        moments = {name: value / vectors_each for name, value in monitors.moments(prediction.embedding).items()}
        if prediction.projected is not None:
            num_classes = self.num_references * self.num_coordinates
            moments |= class_sums(prediction.projected, self._classes(batch), num_classes)
        count = batch.cubes.new_full((), len(batch.cubes))
        return {**{name: values.sum() for name, values in parts.items()}, **moments, "count": count}

    def figures(self, means: dict[str, torch.Tensor]) -> dict[str, float]:
        """A row's figures from the means over all held-out samples."""
        spread = monitors.spread_of(means.pop("embedding"), means.pop("outer"))
        if "class_sums" in means:
            spread["separation"] = separation(means.pop("class_sums"), means.pop("class_counts"))
        return {**{name: value.item() for name, value in means.items()}, **spread}

    def score(self, row: EpochRow) -> float:
        """The loss on held-out subjects; before the last phase, or stage, nothing is best but the newest.

        Of contrast alone there is none without pairs, and classes should lie apart.
        """
        last = self.phases[-1]
        if row["phase"] != last or (self.stages and self.scales(row["epoch"]) != self.stages[-1]):
            return math.inf
        if last == CLASSIFICATION:
            return row["val_classification"]
        if self.pretext.lambda_rec or self.pretext.lambda_cls:
            return row["val_loss"]
        return -row["val_separation"] if self.pretext.lambda_pair else row["val_restoration"]

    def should_stop(self, history: Sequence[EpochRow]) -> bool:
        scores = [self.score(row) for row in history if self.score(row) < math.inf]
        return bool(scores) and len(scores) - 1 - scores.index(min(scores)) >= self.settings.patience

    def warnings(self, history: Sequence[EpochRow], at_end: bool = False) -> dict[str, str]:
        """What goes wrong in training; a part of weight 0 is not expected to learn."""
        found = monitors.warnings(history, self.chance if self.pretext.lambda_cls else None, at_end)
        if not self.pretext.lambda_rec:
            found.pop("restoration", None)
        return found

    def make_batch(self, batch: Batch, epoch: int) -> PretextBatch:
        """Corrupt the cubes of a batch and make the puzzle's questions; draws belong to the pattern and the epoch."""
        device, draws = batch.cubes.device, self._draws(batch, epoch)
        shown, original = corrupt(batch.cubes, draws, self.corruption)
        labels = self._classes(batch)
        answers = shares = None
        if self.puzzle is not None:
            shown, answers = self.puzzle.ask(shown, labels, draws)
            if self.settings.overlap is not None:
                assert self.boxes is not None  # a task on a store has them
                scales = send(torch.from_numpy(batch.columns["scale"].astype("int64")), device)
                shares = shares_of(self.boxes, labels, scales)
        masked = masked_places(batch.cubes, draws, self.corruption)
        shown = shown.contiguous(memory_format=self._memory_format)
        return PretextBatch(shown, original, labels, answers, masked, shares)

    def held_out_places(self, batch: Batch) -> torch.Tensor | None:
        """The voxels of held-out cubes that are to be restored, bool [n, 1, z, y, x]; None where all are."""
        return masked_places(batch.cubes, self._draws(batch, VALIDATION_EPOCH), self.corruption)

    def _draws(self, batch: Batch, epoch: int) -> Draws:
        """Streams on the CPU, where what is drawn decides what is done to which sample."""
        return Draws.of(self.seed, torch.from_numpy(batch.columns["pattern_id"]), epoch)

    def _labels(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Pseudo-labels of the coordinates in use, int64; without meaning for random crops."""
        return columns["reference"].astype("int64") * self.num_coordinates + columns["coordinate"]

    def _classes(self, batch: Batch) -> torch.Tensor:
        return send(torch.from_numpy(self._labels(batch.columns)), batch.cubes.device)

    @property
    def _memory_format(self) -> torch.memory_format:
        return MEMORY_FORMATS[len(self.sample_shape)] if self.settings.channels_last else torch.contiguous_format

    def _predict(self, model: nn.Module, shown: torch.Tensor, restore: bool, cross: bool = False) -> Prediction:
        with autocast(shown.device.type, self.settings.precision):
            return model(shown, restore=restore, cross=cross)

    def _parts(self, prediction: Prediction, batch: PretextBatch) -> dict[str, torch.Tensor]:
        """Parts of the loss that a prediction tells, and accuracy, of each sample, float32 [n]."""
        parts = {}
        if self.puzzle is not None and prediction.logits is not None and batch.answers is not None:
            parts[CLASSIFICATION], parts["accuracy"] = self.puzzle.grade(prediction.logits, batch.answers)
            if self.settings.overlap is not None and batch.shares is not None:
                loss = OVERLAP_LOSSES[self.settings.overlap]
                parts[CLASSIFICATION] = loss(prediction.logits, batch.answers, batch.shares)
        for name, restored in ((RESTORATION, prediction.restored), (CROSS_RESTORATION, prediction.crossed)):
            if restored is not None:
                parts[name] = restoration_error(restored, batch.original, batch.masked)
        return parts

    def _joint(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        weights = self.pretext.weights
        first, *others = (
            weight * parts[name] for name, weight in weights.items() if weight is not None and name in parts
        )
        return sum(others, first)
