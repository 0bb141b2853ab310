"""Fine-tuning on torch's `meta` device: its steps never wait for a GPU, and leave nothing on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raygenesis.networks.architecture import Architecture
from raygenesis.settings import FinetuneSettings
from raygenesis.transfer import augmentation, learning
from raygenesis.transfer.cases import Case
from raygenesis.transfer.classification import num_outputs, train_classifier
from raygenesis.transfer.initialisations import Initialisation, classification_network, segmentation_network
from raygenesis.transfer.segmentation import train_segmenter
from raygenesis.transfer.setup import TrialSetup
from tests.support.cases import box_case, setup_of
from tests.support.meta import meta_autocast

SHAPE = (16, 16, 16)
START = Initialisation("random", None, Architecture(base_width=2), "")
VALUES = {"classification": (0, 1, 2), "multilabel": ((0, 1, 0), (1, 1, 0), (0, 0, 0)), "regression": (1.0, 2.0, 4.0)}


class MetaSetup(TrialSetup):
    @property
    def device(self) -> str:
        return "meta"


class Drawn:
    """In place of torch's generator, which the meta device has not."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "meta"

    def manual_seed(self, seed: int) -> None:
        """Nothing is drawn."""


@pytest.fixture(autouse=True)
def read(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The losses that would be read, once at the end."""
    losses: list[torch.Tensor] = []

    def keep(unread: list[torch.Tensor], last: int) -> list[float]:
        losses.extend(unread)
        return [0.0] * len(unread)

    monkeypatch.setattr(learning, "_read", keep)
    monkeypatch.setattr(learning, "autocast", meta_autocast)
    monkeypatch.setattr(augmentation.torch, "Generator", Drawn)
    return losses


def setup(task: str, **chosen: Any) -> TrialSetup:
    settings = FinetuneSettings(num_steps=2, batch_size=3, **{"precision": "fp32", **chosen})
    made = setup_of(task, settings, 3, input_shape=SHAPE, spacing_mm=(1.0,) * 3)
    return MetaSetup(**{name: getattr(made, name) for name in TrialSetup.__dataclass_fields__})


CHOSEN: list[dict[str, Any]] = [{}, {"precision": "bf16"}, {"augmentation": "none"}, {"class_balance": "none"}]


@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
@pytest.mark.parametrize("task", VALUES)
def test_a_classifier(task: str, chosen: dict[str, Any], read: list[torch.Tensor]) -> None:
    greys = np.random.default_rng(0).random((3, *SHAPE), np.float32)
    cases = [Case("a", "a", grey, value=value) for grey, value in zip(greys, VALUES[task], strict=True)]
    network = classification_network(START, num_outputs(task, 3), 0, 3)
    train_classifier(network, cases, setup(task, **chosen), 0)
    assert [loss.device.type for loss in read] == ["meta"] * 2


@pytest.mark.parametrize("chosen", [*CHOSEN, {"loss": "dice"}], ids=str)
def test_a_segmenter(chosen: dict[str, Any], read: list[torch.Tensor]) -> None:
    made = setup("segmentation", **chosen)
    cases = [box_case(seed, (24, 20, 18)) for seed in range(3)]
    train_segmenter(segmentation_network(START, 3, "full", 0, 3), cases, made, 0)
    assert [loss.device.type for loss in read] == ["meta"] * 2
