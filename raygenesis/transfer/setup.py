"""What the trials of a target have in common."""

from __future__ import annotations

from dataclasses import dataclass

from raygenesis.settings import FinetuneSettings
from raygenesis.transfer.augmentation import Augmentation
from raygenesis.transfer.cases import Form


@dataclass(frozen=True)
class TrialSetup:
    """The task of all trials of a target, and how each is run.

    num_classes: of a segmentation with the background. form: of the network's input. num_gpus: that a trial has;
    num_threads: that torch may use.
    """

    task: str
    num_classes: int
    form: Form
    settings: FinetuneSettings
    num_gpus: float = 0.0
    num_threads: int = 1

    @property
    def device(self) -> str:
        """The device that torch computes on."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def augmentation(self) -> Augmentation | None:
        """How what is learnt from is changed at random; None for not at all."""
        if self.settings.augmentation == "none":
            return None
        shape = self.form.input_shape
        return Augmentation(shape, self.form.spacing_mm or (1.0,) * len(shape), self.form.symmetric_axes)
