"""The pretext task: name the place of a corrupted pattern and restore it (paper sections 2.2 and 2.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from raygenesis.config import PretrainingSettings
from raygenesis.feeding import Batch
from raygenesis.pretraining.corruptions import CORRUPTIONS, corrupt
from raygenesis.pretraining.draws import Draws
from raygenesis.pretraining.networks import SemanticGenesis

CLASSIFICATION, JOINT = "classification", "joint"
MEMORY_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}

# Held-out cubes are corrupted alike in every epoch, so that their errors can be compared; training counts from 0.
VALIDATION_EPOCH = -1


@dataclass(frozen=True)
class PretextTask:
    """Semantic Genesis as an experiment of the epoch loop.

    num_references, num_coordinates: R and the C in use; labels are reference × C + coordinate.
    """

    settings: PretrainingSettings
    seed: int
    sample_shape: tuple[int, ...]
    num_references: int
    num_coordinates: int
    name: str = "pretrain"
    sample_key: str = "pattern_id"

    @property
    def num_classes(self) -> int:
        return self.num_references * self.num_coordinates

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def num_epochs(self) -> int:
        return self.settings.num_classification_epochs + self.settings.num_joint_epochs

    def build(self) -> SemanticGenesis:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = SemanticGenesis(self.num_classes, len(self.sample_shape), self.settings.base_width)
        return model.to(memory_format=MEMORY_FORMATS[len(self.sample_shape)])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.settings.learning_rate)

    def phase(self, epoch: int) -> str:
        return CLASSIFICATION if epoch < self.settings.num_classification_epochs else JOINT

    def begin_epoch(self, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> str:
        """Step the learning rate, and leave the decoder out where it is not trained."""
        for group in optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self.settings.decay_factor ** (
                epoch // self.settings.decay_epochs
            )
        model.decoder.requires_grad_(self._restores(epoch))
        return self.phase(epoch)

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
        corrupted, original, labels = self._prepare(batch, epoch)
        prediction = model(corrupted, restore=self._restores(epoch))
        classification = functional.cross_entropy(prediction.logits, labels)
        accuracy = (prediction.logits.argmax(1) == labels).float().mean()
        losses = {"classification": classification, "accuracy": accuracy}
        if self.phase(epoch) == CLASSIFICATION:
            return {"loss": classification, **losses}
        loss = self.settings.lambda_cls * classification
        if prediction.restored is not None:
            losses["restoration"] = functional.mse_loss(prediction.restored, original)
            loss = loss + self.settings.lambda_rec * losses["restoration"]
        return {"loss": loss, **losses}

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sums; `identity` is the error of returning the corrupted cube as it is."""
        corrupted, original, labels = self._prepare(batch, VALIDATION_EPOCH)
        prediction = model(corrupted)
        classification = functional.cross_entropy(prediction.logits, labels, reduction="none")
        restoration = (prediction.restored - original).square().flatten(1).mean(1)
        return {
            "loss": (self.settings.lambda_rec * restoration + self.settings.lambda_cls * classification).sum(),
            "classification": classification.sum(),
            "accuracy": (prediction.logits.argmax(1) == labels).float().sum(),
            "restoration": restoration.sum(),
            "identity": (corrupted - original).square().flatten(1).mean(1).sum(),
            "count": restoration.new_tensor(len(labels)),
        }

    def score(self, row: Mapping[str, Any]) -> float:
        """The joint loss on held-out subjects; before the joint phase nothing is best but the newest."""
        if row["phase"] == CLASSIFICATION:
            return row["val_classification"] if self.settings.num_joint_epochs == 0 else math.inf
        return row["val_loss"]

    def should_stop(self, history: list[dict[str, Any]]) -> bool:
        scores = [self.score(row) for row in history if self.score(row) < math.inf]
        return bool(scores) and len(scores) - 1 - scores.index(min(scores)) >= self.settings.patience

    def _restores(self, epoch: int) -> bool:
        return self.phase(epoch) == JOINT and self.settings.lambda_rec > 0

    def _prepare(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Corrupted cubes, what they should be restored to, and labels int64 [n]."""
        device = batch.cubes.device
        ids = torch.from_numpy(batch.columns["pattern_id"]).to(device)
        corruption = CORRUPTIONS[self.settings.corruption]
        corrupted, original = corrupt(batch.cubes, Draws.of(self.seed, ids, epoch), corruption)
        labels = batch.columns["reference"].astype("int64") * self.num_coordinates + batch.columns["coordinate"]
        corrupted = corrupted.contiguous(memory_format=MEMORY_FORMATS[len(self.sample_shape)])
        return corrupted, original, torch.from_numpy(labels).to(device)
