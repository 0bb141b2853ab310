"""Measures of a pretrained network, against scikit-learn and NumPy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import average_precision_score

from raygenesis.networks.unet import UNetEncoder
from raygenesis.patterns.cells import encode
from raygenesis.pretraining import probe
from raygenesis.pretraining.probe import anatomy_retrieval, embed_samples, mean_image_error
from raygenesis.training.feeding import Samples
from tests.support.synthetic import pattern_table, quantised, samples

SIDE = 3


class Flattening(torch.nn.Module):
    """An encoder whose vector of a cube is its voxels: embeddings can be made to order."""

    def embed(self, images):
        return images.flatten(1)


def embedded(vectors, labels, volumes):
    """Samples whose cubes are the given vectors in [0, 1], of SIDE³ numbers."""
    cells = [encode(vector.reshape(SIDE, SIDE, SIDE).astype(np.float32)) for vector in vectors]
    table = pa.table(
        {
            "pattern_id": np.arange(len(cells)),
            "label": pa.array(labels, pa.int32()),
            "volume_id": [str(volume) for volume in volumes],
            "cube": pa.array(cells, pa.binary()),
        }
    )
    return Samples([table], "pattern_id", (SIDE,) * 3)


def mean_average_precision(vectors, labels, volumes):
    """Cosine similarity ranked and judged by scikit-learn, query by query."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    precisions = []
    for query in range(len(labels)):
        others = volumes != volumes[query]
        relevant = labels[others] == labels[query]
        if relevant.any():
            precisions.append(average_precision_score(relevant, unit[others] @ unit[query]))
    return np.mean(precisions)


@pytest.mark.parametrize("seed", range(4))
def test_retrieval_is_scikit_learns_mean_average_precision(seed, monkeypatch):
    monkeypatch.setattr(probe, "NUM_QUERIES", 7)
    generator = np.random.default_rng(seed)
    labels, volumes = np.tile(np.arange(6), 10), np.repeat(np.arange(10), 6)
    centres = generator.random((6, SIDE**3))
    vectors = quantised((0.4 * centres[labels] + 0.6 * generator.random((60, SIDE**3))).astype(np.float32))
    expected = mean_average_precision(vectors.astype(np.float64), labels, volumes)
    assert 0.3 < expected < 0.99
    assert anatomy_retrieval(Flattening(), embedded(vectors, labels, volumes)) == pytest.approx(expected, abs=2e-3)


def test_retrieval_is_one_where_the_same_place_is_always_nearest():
    labels, volumes = np.tile(np.arange(8), 5), np.repeat(np.arange(5), 8)
    vectors = np.eye(SIDE**3)[labels] * 0.9 + 0.01 * np.random.default_rng(0).random((40, SIDE**3))
    assert anatomy_retrieval(Flattening(), embedded(vectors, labels, volumes)) == 1


def test_retrieval_by_hand():
    vectors = np.zeros((4, SIDE**3))
    vectors[:, :2] = [[1, 0], [1, 0.1], [1, 0.3], [0, 1]]
    # From scan 0 (place 0) the order of the others is places 1, 0, 1: the one hit comes second.
    samples_ = embedded(vectors, np.array([0, 1, 0, 1]), np.array([0, 1, 2, 3]))
    # Queries: 0 finds its place second (1/2); 1 last (1/3); 2 last but one (1/2); 3 second (1/2).
    assert anatomy_retrieval(Flattening(), samples_) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)


def test_a_cubes_own_scan_is_not_searched():
    """Cubes of one scan look alike whatever their place, and must not count."""
    vectors = np.zeros((4, SIDE**3))
    vectors[:, :3] = [[1, 0, 0.1], [1, 0, 0.1], [0, 1, 0.1], [0, 1, 0.2]]
    labels, volumes = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    # Queries 0 and 1 see scan 1 alone: place 1 (0.2) is nearer than place 0; query 2 sees only hits; 3 has no mate.
    assert anatomy_retrieval(Flattening(), embedded(vectors, labels, volumes)) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_a_place_seen_in_one_scan_only_is_left_out():
    vectors = np.random.default_rng(0).random((3, SIDE**3))
    assert np.isnan(anatomy_retrieval(Flattening(), embedded(vectors, [0, 1, 2], [0, 1, 2])))
    assert anatomy_retrieval(Flattening(), embedded(vectors, [0, 0, 2], [0, 1, 1])) > 0


def test_an_encoder_is_probed_without_its_being_changed():
    encoder = UNetEncoder(base_width=2).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    held = samples(pattern_table(40))
    vectors = embed_samples(encoder, held)
    assert vectors.shape == (40, 32)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    with torch.no_grad():
        expected = encoder.eval().embed(held.batch(np.array([39])).cubes)
    torch.testing.assert_close(vectors[39:], expected)


def test_the_mean_images_error_is_numpys():
    train, held_out = pattern_table(50), pattern_table(33, first=100)
    voxels = [
        np.concatenate([samples(table).batch(np.array([n])).cubes[:, 0].numpy() for n in range(len(table))])
        for table in (train, held_out)
    ]
    expected = np.mean((voxels[1].astype(np.float64) - voxels[0].astype(np.float64).mean(0)) ** 2)
    assert mean_image_error(samples(train), samples(held_out)) == pytest.approx(expected, rel=1e-5)

    def masked(batch):
        """Of cube n the first 1 + n % 7 planes."""
        planes = (
            torch.arange(8).view(1, 1, 8, 1, 1)
            < 1 + torch.from_numpy(batch.columns["pattern_id"]).view(-1, 1, 1, 1, 1) % 7
        )
        return planes.expand(batch.cubes.shape)

    errors = (voxels[1].astype(np.float64) - voxels[0].astype(np.float64).mean(0)) ** 2
    expected = np.mean([error[: 1 + number % 7].mean() for number, error in zip(range(100, 133), errors, strict=True)])
    assert mean_image_error(samples(train), samples(held_out), masked) == pytest.approx(expected, rel=1e-5)
