"""Learning to classify scans, or to tell a number of them; no Ray here.

Regression learns its values in units of their spread among the labelled cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from raygenesis.networks.encoder import ImageEncoder
from raygenesis.settings import FinetuneSettings
from raygenesis.transfer.cases import Case
from raygenesis.transfer.examples import CLASSIFICATION, MULTILABEL, REGRESSION
from raygenesis.transfer.learning import MEMORY_FORMAT, TrainingOutcome, to_device, train
from raygenesis.transfer.metrics import PRIMARY, figures

Answers = NDArray[np.float64]


def num_outputs(task: str, num_classes: int) -> int:
    """Outputs of a network for a task: one a class, or one number."""
    return 1 if task == REGRESSION else num_classes


def train_classifier(
    network: nn.Module, cases: Sequence[Case], task: str, settings: FinetuneSettings, seed: int, device: str = "cpu",
    validation: Sequence[Case] = (), num_classes: int = 1,
) -> TrainingOutcome:  # fmt: skip
    """Train in place on batches of whole cases, in a new order each time all have been seen."""
    to_device(network, device)
    values = np.array([case.value for case in cases])
    scale = spread_of(values) if task == REGRESSION else (0.0, 1.0)
    order: list[int] = []

    def batches(generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        while len(order) < settings.batch_size:
            order.extend(generator.permutation(len(cases)).tolist())
        chosen = [order.pop(0) for _ in range(settings.batch_size)]
        wanted = torch.from_numpy(values[chosen]).to(device)
        return _images(cases, chosen, device), wanted

    def validate() -> float:
        answers = answers_of(network, validation, task, scale, settings.batch_size)
        tested = [{"value": case.value, "answer": answer} for case, answer in zip(validation, answers, strict=True)]
        return PRIMARY[task].sign * figures(task, tested)[PRIMARY[task].name]

    loss_of = _loss(task, values, num_classes, scale, settings.class_balance == "weights", device)
    return train(network, batches, loss_of, settings, seed, validate if validation else None)


@torch.inference_mode()
def answers_of(
    network: nn.Module, cases: Sequence[Case], task: str, scale: tuple[float, float], batch_size: int
) -> list[Any]:
    """Of each case the probability of each class, or the number; scale: mean and spread of a regression's values."""
    device = next(network.parameters()).device
    network.eval()
    answers: list[Any] = []
    for images in _in_batches(cases, batch_size, str(device)):
        out = network(images).double()
        if task == CLASSIFICATION:
            answers += out.softmax(1).tolist()
        elif task == MULTILABEL:
            answers += out.sigmoid().tolist()
        else:
            answers += (out[:, 0] * scale[1] + scale[0]).tolist()
    return answers


@torch.inference_mode()
def embedded(encoder: ImageEncoder, cases: Sequence[Case], batch_size: int, device: str = "cpu") -> NDArray[np.float32]:
    """[n, num_features]: the encoder's vector of each case."""
    to_device(encoder, device)
    encoder.eval()
    return torch.cat([encoder.embed(images).cpu() for images in _in_batches(cases, batch_size, device)]).numpy()


def probe(
    learnt: NDArray[np.float32], values: NDArray[Any], tested: NDArray[np.float32], task: str, num_classes: int,
    settings: FinetuneSettings,
) -> list[Any]:  # fmt: skip
    """Answers, as `answers_of`, of a linear probe (mode `frozen`), or of the k nearest labelled cases, each weighing as
    the inverse of its distance (mode `knn`)."""
    if task == REGRESSION:
        k = min(settings.k, len(values))
        model = KNeighborsRegressor(k, weights="distance") if settings.mode == "knn" else Ridge()
        return make_pipeline(StandardScaler(), model).fit(learnt, values).predict(tested).tolist()
    if task == MULTILABEL:
        each = [_probabilities(learnt, values[:, number], tested, 2, settings)[:, 1] for number in range(num_classes)]
        return np.stack(each, 1).tolist()
    return _probabilities(learnt, values, tested, num_classes, settings).tolist()


def spread_of(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation; 1 where nothing varies."""
    return float(values.mean()), float(values.std()) or 1.0


def _probabilities(
    learnt: NDArray[np.float32], values: NDArray[Any], tested: NDArray[np.float32], num_classes: int,
    settings: FinetuneSettings,
) -> Answers:  # fmt: skip
    """[n, num_classes]; a class that no labelled case has is never the answer."""
    there = np.unique(values)
    found = np.zeros((len(tested), num_classes))
    if len(there) == 1:
        found[:, there[0]] = 1.0
        return found
    if settings.mode == "knn":
        model = KNeighborsClassifier(min(settings.k, len(values)), weights="distance")
    else:
        balanced = "balanced" if settings.class_balance == "weights" else None
        model = LogisticRegression(max_iter=1000, class_weight=balanced)
    found[:, there] = make_pipeline(StandardScaler(), model).fit(learnt, values).predict_proba(tested)
    return found


def _loss(
    task: str, values: NDArray[Any], num_classes: int, scale: tuple[float, float], balanced: bool, device: str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Cross-entropy, of each class apart where several may be true, or squared error.

    balanced: rare classes count more.
    """
    if task == REGRESSION:
        mean, spread = scale
        return lambda out, wanted: functional.mse_loss(out[:, 0], ((wanted - mean) / spread).float())
    if task == MULTILABEL:
        positive = values.sum(0)
        odds = np.where(positive > 0, (len(values) - positive) / np.maximum(positive, 1), 1.0)
        weight = torch.tensor(odds, dtype=torch.float32, device=device) if balanced else None
        return lambda out, wanted: functional.binary_cross_entropy_with_logits(out, wanted.float(), pos_weight=weight)
    counts = np.bincount(values, minlength=num_classes)
    weights = len(values) / (num_classes * np.maximum(counts, 1))
    weight = torch.tensor(weights, dtype=torch.float32, device=device) if balanced else None
    return lambda out, wanted: functional.cross_entropy(out, wanted, weight=weight)


def _images(cases: Sequence[Case], chosen: Sequence[int], device: str) -> torch.Tensor:
    """float32 [n, 1, z, y, x]."""
    images = np.stack([cases[number].image for number in chosen])[:, None].astype(np.float32)
    return torch.from_numpy(images).to(device, memory_format=MEMORY_FORMAT[images.ndim])


def _in_batches(cases: Sequence[Case], batch_size: int, device: str) -> Iterator[torch.Tensor]:
    for begin in range(0, len(cases), batch_size):
        yield _images(cases, range(begin, min(begin + batch_size, len(cases))), device)
