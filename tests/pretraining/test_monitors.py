"""Monitors: figures against SciPy and NumPy on whole embeddings, and a sentence for each way of failing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from raygenesis.pretraining.monitors import moments, spread_of, warnings


def figures(vectors):
    """Over uneven batches, as validation sums them."""
    parts = [moments(part) for part in torch.from_numpy(vectors).float().split(7)]
    means = {name: sum(part[name] for part in parts) / len(vectors) for name in parts[0]}
    return spread_of(means["embedding"], means["outer"])


def rankme(vectors):
    """Garrido et al. 2023: the exponential of the entropy of the normalised singular values."""
    singular = np.linalg.svd(vectors, compute_uv=False)
    return np.exp(stats.entropy(singular / singular.sum()))


@pytest.mark.parametrize(("num", "size"), [(50, 8), (20, 32)])
def test_effective_rank_and_variance_are_those_of_the_whole_matrix(num, size):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(num, size)) * generator.uniform(0.1, 2, size) + 0.5
    found = figures(vectors)
    assert found["effective_rank"] == pytest.approx(rankme(vectors), rel=1e-3)
    expected = vectors.var(0).sum() / np.square(vectors).sum(1).mean()
    assert found["embedding_variance"] == pytest.approx(expected, rel=1e-4)


def test_equal_vectors_have_rank_one_and_no_variance():
    found = figures(np.tile(np.arange(1.0, 9), (30, 1)))
    assert found["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert found["embedding_variance"] == pytest.approx(0, abs=1e-6)


def test_vectors_that_are_all_zero_are_collapsed_too():
    found = figures(np.zeros((10, 4)))
    assert found["embedding_variance"] <= 1e-3 and np.isfinite(found["effective_rank"])


HEALTHY = {
    "phase": "joint", "val_embedding_variance": 0.2, "val_effective_rank": 9.0, "val_accuracy": 0.6,
    "val_restoration": 0.02, "val_identity": 0.2, "val_blank": 0.05, "train_gradient_norm": 0.5,
}  # fmt: skip


def told(num_epochs=8, chance=0.1, before=None, **last):
    """Of a run whose last five epochs are like `last`."""
    rows = [dict(HEALTHY, **(before or {})) for _ in range(num_epochs - 5)]
    return warnings([*rows, *[dict(HEALTHY, **last)] * min(5, num_epochs)], chance)


def test_nothing_is_said_of_a_healthy_run():
    assert told() == {} and warnings([], 0.1) == {}


@pytest.mark.parametrize(
    ("kind", "last", "words"),
    [
        ("embedding", {"val_embedding_variance": 1e-5}, ["collapsed", "1.0e-05", "9.00"]),
        ("embedding", {"val_effective_rank": 1.01}, ["collapsed", "1.01"]),
        ("classification", {"val_accuracy": 0.1}, ["held-out accuracy was 0.100 at best", "guessing gives 0.100"]),
        ("restoration", {"val_restoration": 0.06}, ["0.0600", "mean value everywhere gives 0.0500"]),
        ("restoration", {"val_restoration": 0.04, "val_identity": 0.03}, ["corrupted cube as it is gives 0.0300"]),
        ("gradient", {"train_gradient_norm": 5000.0}, ["5.0e-01 to 5.0e+03", "diverges"]),
        ("gradient", {"train_gradient_norm": 0.0}, ["nothing flows back"]),
    ],
)
def test_each_failure_has_its_sentence(kind, last, words):
    found = told(**last)
    assert found.keys() == {kind}
    assert all(word in found[kind] for word in words), found


def test_a_phase_is_not_judged_before_it_has_had_its_epochs():
    bad = {"val_accuracy": 0.1, "val_effective_rank": 1.0, "val_restoration": 1.0}
    assert told(num_epochs=4, before=bad, **bad) == {}
    rows = [dict(HEALTHY, phase="classification", **bad)] * 9
    assert "restoration" not in warnings(rows, 0.1)
    assert warnings([*rows, dict(HEALTHY, **bad)], 0.1) == {}


def test_at_its_end_training_is_judged_by_the_epochs_that_there_were():
    rows = [dict(HEALTHY, val_effective_rank=1.0, val_accuracy=0.1)] * 2
    assert warnings(rows, 0.1) == {}
    found = warnings(rows, 0.1, at_end=True)
    assert found.keys() == {"embedding", "classification"} and "in the last 2 epochs" in found["classification"]
    assert warnings([HEALTHY], 0.1, at_end=True) == {} == warnings([], 0.1, at_end=True)


def test_one_bad_epoch_among_good_ones_is_not_told():
    assert warnings([HEALTHY] * 8 + [dict(HEALTHY, val_accuracy=0.1, val_restoration=0.9)], 0.1) == {}


def test_an_auto_encoder_is_not_compared_with_its_own_input():
    assert told(val_identity=0.0, val_restoration=0.02) == {}


def test_with_two_classes_half_way_to_perfect_is_learnt():
    assert told(chance=0.5, val_accuracy=0.76) == {} and "classification" in told(chance=0.5, val_accuracy=0.7)


def test_what_a_task_does_not_have_is_not_judged():
    rows = [{name: value for name, value in HEALTHY.items() if name.startswith(("phase", "val_e"))}] * 8
    assert warnings(rows, None) == {}
