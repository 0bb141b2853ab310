"""The one tree of validated settings: YAML presets plus dotted overrides.

Defaults are the paper's 3D numbers (Haghighi et al. 2020, section 3), but for the recipe of fine-tuning, which later
work has improved; the presets in `presets/` list only what they change.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from raygenesis.settings.archive import ArchiveSettings, IntensitySettings
from raygenesis.settings.discovery import (
    AUTOENCODER_DIVISOR,
    AutoencoderSettings,
    DiscoverySettings,
    EmbeddingSettings,
    IndexSettings,
)
from raygenesis.settings.finetune import FinetuneSettings
from raygenesis.settings.pretraining import NETWORK_DIVISORS, PretrainingSettings
from raygenesis.settings.prices import PriceSettings
from raygenesis.settings.section import Section
from raygenesis.settings.sweep import SweepSettings


class Settings(Section):
    """The whole tree. `raygenesis config --preset NAME` prints it resolved."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Random seed for every stage.")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2,
        description="Fraction of the subjects held out of every training, that of the auto-encoder included.",
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
        """Dotted keys that were given one by one on the command line; they take precedence over what a file says."""
        return self._given

    def gpus_of_trial(self, section: Literal["sweep", "finetune"]) -> float:
        """GPUs per trial of a sweep or of fine-tuning: `num_gpus` of its section, else 1 with `pretraining.use_gpu`."""
        num_gpus = getattr(self, section).num_gpus
        return float(self.pretraining.use_gpu) if num_gpus is None else num_gpus

    @property
    def pretraining_seed(self) -> int:
        """The seed of a pretraining: `pretraining.seed`, else `seed`."""
        return self.seed if self.pretraining.seed is None else self.pretraining.seed

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions: 3 or 2."""
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
