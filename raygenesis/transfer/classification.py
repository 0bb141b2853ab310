"""Classification of scans, and regression of a number.

Regression learns its values in units of their standard deviation among the labelled cases.
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
from raygenesis.training.devices import send
from raygenesis.training.precision import autocast
from raygenesis.transfer.augmentation import augment
from raygenesis.transfer.cases import Case
from raygenesis.transfer.examples import CLASSIFICATION, MULTILABEL, REGRESSION
from raygenesis.transfer.learning import MEMORY_FORMAT, TrainingOutcome, to_device, train
from raygenesis.transfer.metrics import PRIMARY, Answer, AnsweredCase, figures
from raygenesis.transfer.setup import TrialSetup


def num_outputs(task: str, num_classes: int) -> int:
    """Outputs of a network for a task: one a class, or one number."""
    return 1 if task == REGRESSION else num_classes


def train_classifier(
    network: nn.Module, cases: Sequence[Case], setup: TrialSetup, seed: int, validation: Sequence[Case] = ()
) -> TrainingOutcome:
    """Train a classifier or regressor in place on batches of whole cases.

    Each batch continues a random order of the cases, which is drawn anew when all have been seen. Cases hold `value`s
    of the task; validation: cases by whose primary figure the best weights are kept.
    """
    task, settings, device, augmentation = setup.task, setup.settings, setup.device, setup.augmentation
    to_device(network, device)
    values = np.array([case.value for case in cases])
    scale = spread_of(values) if task == REGRESSION else (0.0, 1.0)
    order: list[int] = []

    def draw_batch(generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        while len(order) < settings.batch_size:
            order.extend(generator.permutation(len(cases)).tolist())
        chosen = [order.pop(0) for _ in range(settings.batch_size)]
        images = _images(cases, chosen, device)
        if augmentation is not None:
            images, _ = augment(images, None, augmentation, generator)
            images = images.contiguous(memory_format=MEMORY_FORMAT[images.ndim])
        return images, send(torch.from_numpy(values[chosen]), device)

    def validate() -> float:
        answers = answers_of(network, validation, task, scale, settings.batch_size, settings.precision)
        return PRIMARY[task].sign * figures(task, answered(validation, answers))[PRIMARY[task].name]

    return train(network, draw_batch, _loss(setup, values, scale), settings, seed, validate if validation else None)


def answered(cases: Sequence[Case], answers: Sequence[Answer]) -> list[AnsweredCase]:
    """Cases with the answers that a network gave."""
    return [
        AnsweredCase(case.name, case.subject, case.value, answer) for case, answer in zip(cases, answers, strict=True)
    ]


@torch.inference_mode()
def answers_of(
    network: nn.Module, cases: Sequence[Case], task: str, scale: tuple[float, float], batch_size: int,
    precision: str = "fp32",
) -> list[Answer]:  # fmt: skip
    """The probability of each class, or the number, for each case.

    scale: mean and standard deviation of the values that a regression learnt from. precision: as `finetune.precision`
    has it.
    """
    device = next(network.parameters()).device
    network.eval()
    answers: list[Answer] = []
    for images in _in_batches(cases, batch_size, str(device)):
        with autocast(images.device.type, precision):
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
    """The encoder's embedding of each case, [cases, num_features]."""
    to_device(encoder, device)
    encoder.eval()
    return torch.cat([encoder.embed(images).cpu() for images in _in_batches(cases, batch_size, device)]).numpy()


def probe(
    labelled: NDArray[np.float32], values: NDArray[Any], tested: NDArray[np.float32], setup: TrialSetup
) -> list[Answer]:
    """Answers, as of `answers_of`, from embeddings [cases, num_features] of labelled and of test cases.

    In mode `frozen` of a linear model; in mode `knn` of the k nearest labelled cases, weighted by the inverse of their
    distances. values: of the labelled cases, [cases] or [cases, classes].
    """
    task, num_classes, settings = setup.task, setup.num_classes, setup.settings
    if task == REGRESSION:
        k = min(settings.k, len(values))
        model = KNeighborsRegressor(k, weights="distance") if settings.mode == "knn" else Ridge()
        return make_pipeline(StandardScaler(), model).fit(labelled, values).predict(tested).tolist()
    if task == MULTILABEL:
        each = [_probabilities(labelled, values[:, number], tested, 2, settings)[:, 1] for number in range(num_classes)]
        return np.stack(each, 1).tolist()
    return _probabilities(labelled, values, tested, num_classes, settings).tolist()


def spread_of(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of values; the latter is 1 where nothing varies."""
    return float(values.mean()), float(values.std()) or 1.0


def _probabilities(
    labelled: NDArray[np.float32], values: NDArray[Any], tested: NDArray[np.float32], num_classes: int,
    settings: FinetuneSettings,
) -> NDArray[np.float64]:  # fmt: skip
    """Probabilities [cases, num_classes]; that of a class which no labelled case has is 0."""
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
    found[:, there] = make_pipeline(StandardScaler(), model).fit(labelled, values).predict_proba(tested)
    return found


def _loss(
    setup: TrialSetup, values: NDArray[Any], scale: tuple[float, float]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Cross-entropy, of each class alone where several may be present, or squared error.

    With `finetune.class_balance` rare classes weigh more.
    """
    task, num_classes, device = setup.task, setup.num_classes, setup.device
    balanced = setup.settings.class_balance == "weights"
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
    return send(torch.from_numpy(images).contiguous(memory_format=MEMORY_FORMAT[images.ndim]), device)


def _in_batches(cases: Sequence[Case], batch_size: int, device: str) -> Iterator[torch.Tensor]:
    for begin in range(0, len(cases), batch_size):
        yield _images(cases, range(begin, min(begin + batch_size, len(cases))), device)
