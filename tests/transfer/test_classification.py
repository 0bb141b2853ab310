"""Learning to classify and to tell a number: networks, probes and neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from raygenesis.networks.architecture import Architecture
from raygenesis.settings import FinetuneSettings
from raygenesis.transfer.cases import Case
from raygenesis.transfer.classification import (
    answers_of,
    embedded,
    num_outputs,
    probe,
    spread_of,
    train_classifier,
)
from raygenesis.transfer.initialisations import Initialisation, classification_network, target_encoder
from raygenesis.transfer.learning import TrainingOutcome
from tests.support.cases import flat, grey_case, setup_of

SHAPE = (8, 8, 8)
START = Initialisation("random", None, Architecture(base_width=2), "")


class Grey(nn.Module):
    """Linear in the mean grey: what it answers can be told by hand."""

    def __init__(self, weights: list[float], biases: list[float]) -> None:
        super().__init__()
        self.linear = nn.Linear(1, len(weights))
        self.kept = nn.Parameter(torch.zeros(1, 1, 1, 1, 1), requires_grad=False)  # of a 3D network
        with torch.no_grad():
            self.linear.weight[:, 0] = torch.tensor(weights)
            self.linear.bias[:] = torch.tensor(biases)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1).mean(1, keepdim=True))


def chosen(**changed: Any) -> FinetuneSettings:
    usual = {
        "num_steps": 30, "batch_size": 4, "learning_rate": 1e-2, "schedule": "constant", "augmentation": "none",
        "weight_decay": 0,
    }  # fmt: skip
    return FinetuneSettings(**{**usual, **changed})


def even(value: Any, grey: float) -> Case:
    return Case("a", "a", np.full(SHAPE, grey, np.float16), value=value)


def first_loss(network: nn.Module, cases: list[Case], task: str, num_classes: int = 1, **changed: Any) -> float:
    """Of a batch that holds every case once."""
    once = chosen(num_steps=1, batch_size=len(cases), **changed)
    return train_classifier(network, cases, setup_of(task, once, num_classes), 0).losses[0]


@pytest.mark.parametrize(("task", "num"), [("classification", 3), ("multilabel", 3), ("regression", 1)])
def test_an_output_a_class_or_one_number(task: str, num: int) -> None:
    assert num_outputs(task, 3) == num


def test_rare_classes_count_more_in_the_loss() -> None:
    cases = [even(0, 0.25), even(0, 0.5), even(0, 0.75), even(1, 0.5)]
    each = []
    for case in cases:
        logits = np.array([2 * float(case.image[0, 0, 0]), 1.0])
        each.append(np.log(np.exp(logits).sum()) - logits[case.value])
    weights = np.array([4 / (2 * 3)] * 3 + [4 / (2 * 1)])  # n / (classes × n of the class)
    network = lambda: Grey([2.0, 0.0], [0.0, 1.0])  # noqa: E731
    expected = np.average(each, weights=weights)
    assert first_loss(network(), cases, "classification", 2) == pytest.approx(expected, abs=1e-5)
    plain = first_loss(network(), cases, "classification", 2, class_balance="none")
    assert plain == pytest.approx(np.mean(each), abs=1e-5) != pytest.approx(expected, abs=1e-3)


def test_rare_findings_count_more_in_the_loss() -> None:
    """A finding that nobody has counts as it is."""
    cases = [even((1, 0), 0.25), even((0, 0), 0.5), even((0, 0), 0.75), even((0, 0), 0.5)]
    network = lambda: Grey([2.0, -1.0], [0.0, 0.5])  # noqa: E731
    out = np.array([[2 * float(case.image[0, 0, 0]), 0.5 - float(case.image[0, 0, 0])] for case in cases])
    probability = 1 / (1 + np.exp(-out))
    wanted = np.array([case.value for case in cases])
    absent = -(1 - wanted) * np.log(1 - probability)
    present = -wanted * np.log(probability)
    weighted, plain = (present * weight + absent for weight in ([3.0, 1.0], [1.0, 1.0]))  # absent / present
    assert first_loss(network(), cases, "multilabel", 2) == pytest.approx(weighted.mean(), abs=1e-5)
    assert first_loss(network(), cases, "multilabel", 2, class_balance="none") == pytest.approx(plain.mean(), abs=1e-5)


def test_a_regression_learns_in_units_of_the_labelled_spread() -> None:
    cases = [even(value, grey) for value, grey in ((100.0, 0.25), (140.0, 0.5), (180.0, 0.75))]
    mean, spread = spread_of(np.array([100.0, 140.0, 180.0]))
    assert (mean, spread) == pytest.approx((140.0, (3200 / 3) ** 0.5))
    out = 2 * np.array([0.25, 0.5, 0.75]) - 1
    errors = out - (np.array([100, 140, 180]) - mean) / spread
    assert first_loss(Grey([2.0], [-1.0]), cases, "regression") == pytest.approx((errors**2).mean(), abs=1e-5)
    answers = answers_of(Grey([2.0], [-1.0]), cases, "regression", (mean, spread), 2)
    assert answers == pytest.approx((out * spread + mean).tolist(), abs=1e-3)
    assert spread_of(np.array([3.0, 3.0])) == (3.0, 1.0)


def test_answers_are_probabilities() -> None:
    cases = [even(0, grey) for grey in (0.0, 0.5, 1.0)]
    network = Grey([2.0, 0.0, -2.0], [0.0, 1.0, 0.0])
    one = np.array(answers_of(network, cases, "classification", (0, 1), 2))
    several = np.array(answers_of(network, cases, "multilabel", (0, 1), 2))
    logits = np.array([[2 * grey, 1.0, -2 * grey] for grey in (0.0, 0.5, 1.0)])
    assert np.allclose(one, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-6)
    assert np.allclose(several, 1 / (1 + np.exp(-logits)), atol=1e-6)


def learnt(task: str, values: list[Any], num: int, **changed: Any) -> tuple[TrainingOutcome, list[Any], list[Case]]:
    cases = [grey_case(n, value, grey) for n, (value, grey) in enumerate(values)]
    unseen = [grey_case(100 + n, value, grey) for n, (value, grey) in enumerate(values)]
    network = classification_network(START, num_outputs(task, num), 1, 3)
    settings = chosen(**changed)
    found = train_classifier(network, cases, setup_of(task, settings, num), 5)
    scale = spread_of(np.array([case.value for case in cases])) if task == "regression" else (0.0, 1.0)
    return found, answers_of(network, unseen, task, scale, 4), unseen


def test_training_learns_and_repeats_itself() -> None:
    values = [(0, 0.2), (1, 0.8), (0, 0.3), (1, 0.7), (0, 0.25), (1, 0.75)]
    first, answers, unseen = learnt("classification", values, 2)
    assert [int(np.argmax(answer)) for answer in answers] == [case.value for case in unseen]
    second, again, _ = learnt("classification", values, 2)
    assert first.losses == second.losses and answers == again


def test_several_findings_at_once_are_learnt() -> None:
    values = [((0, 1), 0.1), ((1, 1), 0.5), ((1, 0), 0.9)] * 2
    _, answers, unseen = learnt("multilabel", values, 2, num_steps=60)
    assert (np.array(answers) > 0.5).astype(int).tolist() == [list(case.value) for case in unseen]


def test_a_number_is_learnt_in_its_own_unit() -> None:
    values = [(100.0 + 100 * grey, grey) for grey in (0.1, 0.3, 0.5, 0.7, 0.9)]
    _, answers, unseen = learnt("regression", values, 1, num_steps=80)
    assert np.abs(np.array(answers) - [case.value for case in unseen]).mean() < 15  # of a spread of 28


def test_all_cases_are_seen_before_any_is_seen_again() -> None:
    """Each case's grey is its number, and a network of nothing but it tells who was in a batch."""
    cases = [even(n % 2, n / 8) for n in range(6)]
    seen: list[float] = []

    class Watch(Grey):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.extend((images[:, 0, 0, 0, 0] * 8).tolist())
            return super().forward(images)

    setup = setup_of("classification", chosen(num_steps=6), 2)
    train_classifier(Watch([1.0, 0.0], [0.0, 0.0]), cases, setup, 0)
    rounds = np.array(seen).reshape(4, 6)
    assert (np.sort(rounds, 1) == np.arange(6)).all() and len({tuple(order) for order in rounds}) > 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_changed_at_random_is_learnt_too(precision: str) -> None:
    values = [(0, 0.1), (1, 0.9), (0, 0.15), (1, 0.85)] * 2
    changed = {"augmentation": "standard", "precision": precision, "num_steps": 80}
    found, answers, unseen = learnt("classification", values, 2, **changed)
    assert [int(np.argmax(answer)) for answer in answers] == [case.value for case in unseen]
    again, same, _ = learnt("classification", values, 2, **changed)
    assert found.losses == again.losses and answers == same
    assert found.losses[0] != learnt("classification", values, 2, precision=precision)[0].losses[0]


def test_validation_keeps_the_weights_that_tell_best() -> None:
    cases = [grey_case(n, n % 2, 0.2 + 0.6 * (n % 2)) for n in range(6)]
    # Here greys are exchanged, so that what is learnt makes it worse, and the beginning is best.
    validation = [grey_case(50 + n, n % 2, 0.8 - 0.6 * (n % 2)) for n in range(6)]
    areas, steps = [], []
    for shown in ([], validation):
        network = Grey([0.0, -1.0], [0.0, 0.0])
        settings = chosen(num_steps=200, patience=3)
        found = train_classifier(network, cases, setup_of("classification", settings, 2), 0, shown)
        answers = np.array(answers_of(network, validation, "classification", (0, 1), 4))
        areas.append(roc_auc_score([case.value for case in validation], answers[:, 1]))
        steps.append(len(found.losses))
    assert areas == [0.0, 1.0] and steps == [200, 40]  # 200 / 20 steps a validation, and three no better than the first


def test_what_a_published_network_tells_does_not_depend_on_the_other_cases() -> None:
    """Grey alone tells the classes, which the statistics of a case by itself would take away."""
    start = Initialisation("released", None, Architecture(base_width=2, norm="batch-statistics"), "")
    cases = [grey_case(n, n % 2, 0.3 + 0.4 * (n % 2), (16, 16, 16)) for n in range(6)]
    network = classification_network(start, 2, 1, 3)
    train_classifier(network, cases, setup_of("classification", chosen(num_steps=60), 2), 0)
    unseen = [grey_case(50 + n, n % 2, 0.3 + 0.4 * (n % 2), (16, 16, 16)) for n in range(5)]
    together = np.array(answers_of(network, unseen, "classification", (0, 1), 4))
    alone = np.concatenate([answers_of(network, [case], "classification", (0, 1), 4) for case in unseen])
    assert np.allclose(together, alone, atol=1e-5)
    assert together.argmax(1).tolist() == [case.value for case in unseen]
    encoder = target_encoder(start, 1, 3)
    vectors = embedded(encoder, unseen, 4)
    assert np.allclose(vectors, np.concatenate([embedded(encoder, [case], 4) for case in unseen]), atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_vectors_are_the_encoders_whatever_the_batches(ndim: int) -> None:
    """Also those of a 2D network that takes volumes slice by slice."""
    encoder = target_encoder(Initialisation("x", None, Architecture(ndim=ndim, base_width=2), ""), 1, 3)
    cases = [grey_case(n, 0, 0.5) for n in range(5)]
    vectors = embedded(encoder, cases, 2)
    assert vectors.shape == (5, encoder.num_features) and np.isfinite(vectors).all()
    whole = torch.from_numpy(np.stack([case.image for case in cases])[:, None].astype(np.float32))
    with torch.inference_mode():
        assert np.allclose(vectors, encoder.eval().embed(whole).numpy(), atol=1e-5)


def test_a_2d_network_learns_from_volumes_slice_by_slice() -> None:
    start = Initialisation("flat", None, Architecture(ndim=2, base_width=2), "")
    network = classification_network(start, 2, 1, 3)
    before = flat(network)
    cases = [grey_case(n, n % 2, 0.5) for n in range(4)]
    train_classifier(network, cases, setup_of("classification", chosen(num_steps=2), 2), 0)
    assert not torch.equal(flat(network), before)


def clusters(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors round three places, and which."""
    generator = np.random.default_rng(seed)
    values = np.arange(num) % 3
    return (np.eye(3)[values] * 5 + generator.normal(0, 1, (num, 3))).astype(np.float32), values


def test_a_linear_probe_is_logistic_regression_of_standardised_vectors() -> None:
    learnt, values = clusters(20, 0)
    tested, wanted = clusters(9, 1)
    answers = np.array(probe(learnt, values, tested, setup_of("classification", chosen(mode="frozen"), 3)))
    scaler = StandardScaler().fit(learnt)
    model = LogisticRegression(max_iter=1000, class_weight="balanced").fit(scaler.transform(learnt), values)
    assert np.allclose(answers, model.predict_proba(scaler.transform(tested)))
    assert (answers.argmax(1) == wanted).all()


@pytest.mark.parametrize("mode", ["frozen", "knn"])
def test_a_class_that_no_labelled_case_has_is_never_the_answer(mode: str) -> None:
    learnt, values = clusters(20, 0)
    tested, _ = clusters(9, 1)
    answers = np.array(probe(learnt, values, tested, setup_of("classification", chosen(mode=mode), 5)))
    assert answers.shape == (9, 5) and (answers[:, 3:] == 0).all() and np.allclose(answers.sum(1), 1)
    without = values != 1
    answers = np.array(
        probe(learnt[without], values[without], tested, setup_of("classification", chosen(mode=mode), 3))
    )
    assert (answers[:, 1] == 0).all() and np.allclose(answers.sum(1), 1)
    alone = probe(learnt, np.full(20, 2), tested, setup_of("classification", chosen(mode=mode), 3))
    assert alone == [[0.0, 0.0, 1.0]] * 9


def test_the_nearest_labelled_cases_answer() -> None:
    learnt = np.array([[0.0], [1.0], [10.0], [11.0], [12.0]], np.float32)
    values = np.array([0, 0, 1, 1, 0])
    tested = np.array([[0.4], [10.5]], np.float32)
    nearest = lambda k: probe(learnt, values, tested, setup_of("classification", chosen(mode="knn", k=k), 2))  # noqa: E731
    assert nearest(2) == pytest.approx(np.array([[1.0, 0.0], [0.0, 1.0]]))
    inverse = [1 / 0.5, 1 / 0.5, 1 / 1.5]  # a near one counts more
    assert nearest(3)[1] == pytest.approx([inverse[2] / sum(inverse), sum(inverse[:2]) / sum(inverse)], abs=1e-4)
    assert len(nearest(99)) == 2  # more than there are
    numbers = probe(
        learnt, np.array([3.0, 5.0, 7.0, 9.0, 11.0]), tested, setup_of("regression", chosen(mode="knn", k=3), 1)
    )
    assert numbers[1] == pytest.approx(np.average([7.0, 9.0, 11.0], weights=inverse), abs=1e-4)


def test_probes_of_several_findings_are_probes_of_each() -> None:
    learnt, values = clusters(20, 0)
    tested, wanted = clusters(9, 1)
    findings = np.stack([values == 0, values != 1, np.zeros(20)], 1).astype(int)
    answers = np.array(probe(learnt, findings, tested, setup_of("multilabel", chosen(mode="frozen"), 3)))
    assert ((answers > 0.5) == np.stack([wanted == 0, wanted != 1, np.zeros(9)], 1)).all()
    one = np.array(probe(learnt, findings[:, 0], tested, setup_of("classification", chosen(mode="frozen"), 2)))
    assert np.allclose(answers[:, 0], one[:, 1]) and (answers[:, 2] == 0).all()


def test_probes_of_a_number() -> None:
    learnt, _ = clusters(20, 0)
    tested, _ = clusters(9, 1)
    values = learnt @ [3.0, -2.0, 1.0] + 100
    scaler = StandardScaler().fit(learnt)
    expected = Ridge().fit(scaler.transform(learnt), values).predict(scaler.transform(tested))
    assert probe(learnt, values, tested, setup_of("regression", chosen(mode="frozen"), 1)) == pytest.approx(
        expected.tolist()
    )
    nearest = probe(learnt, values, learnt[:2], setup_of("regression", chosen(mode="knn", k=1)))
    assert nearest == pytest.approx(values[:2].tolist())
