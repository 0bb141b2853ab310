"""Draws: uniform, independent, and a function of (seed, sample, epoch, tag) and nothing else."""

import numpy as np
import pytest
import torch
from scipy import stats

from raygenesis.pretraining.draws import Draws

SAMPLES, NUMBERS = 64, 8192


def uniform(seed=3, first=0, epoch=0, tag="a"):
    ids = torch.arange(first, first + SAMPLES)
    return Draws.of(seed, ids, epoch).uniform(tag, (NUMBERS,)).double().numpy()


def splitmix64(word):
    """The published finaliser, in Python's unbounded integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
    return word ^ (word >> 31)


def test_keys_are_the_unsigned_64_bit_mixing():
    ids = [0, 1, 2**40 + 7, -5]
    keys = Draws.of(11, torch.tensor(ids), 4).keys.tolist()
    for sample, key in zip(ids, keys, strict=True):
        expected = 0
        for word in (11, 4, sample):
            expected = splitmix64((expected + word + 0x9E3779B97F4A7C15) % 2**64)
        assert key % 2**64 == expected


def test_numbers_never_change_between_versions():
    draws = Draws.of(7, torch.tensor([5]), 2)
    assert draws.bits("golden", (3,)).tolist() == [[-1036737330, 436268427, 1483216580]]


def test_uniform_range_and_type():
    numbers = Draws.of(0, torch.arange(64), 0).uniform("a", (2, 4096))
    assert numbers.shape == (64, 2, 4096) and numbers.dtype == torch.float32
    assert 0 <= numbers.min() < 1e-4 and 1 - 1e-4 < numbers.max() < 1


def test_uniform_along_positions_and_along_samples():
    numbers = uniform()
    many = Draws.of(1, torch.arange(8192), 0).uniform("a", (SAMPLES,)).double().numpy()
    for rows in (numbers, many.T):
        p_values = [stats.kstest(row, "uniform").pvalue for row in rows]
        assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_every_bit_is_fair():
    bits = Draws.of(9, torch.arange(16), 0).bits("a", (NUMBERS,)).numpy().view(np.uint32)
    ones = ((bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1).mean((0, 1))
    assert np.abs(ones - 0.5).max() < 4.5 * 0.5 / np.sqrt(bits.size)


def test_samples_are_uncorrelated():
    correlations = np.corrcoef(uniform())[np.triu_indices(SAMPLES, 1)] * np.sqrt(NUMBERS)
    assert abs(correlations.std() - 1) < 0.1 and np.abs(correlations).max() < 5


@pytest.mark.parametrize("other", [{"tag": "b"}, {"epoch": 1}, {"seed": 4}, {"first": SAMPLES}, {"tag": 0}])
def test_streams_are_independent(other):
    one, two = uniform().ravel(), uniform(**other).ravel()
    assert abs(np.corrcoef(one, two)[0, 1]) < 4.5 / np.sqrt(one.size)
    cells = np.histogram2d(one, two, bins=32, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-4


@pytest.mark.parametrize("lag", [1, 2, 32, 64, 2048])
def test_positions_are_independent(lag):
    numbers = uniform()
    cells = np.histogram2d(numbers[:, :-lag].ravel(), numbers[:, lag:].ravel(), bins=32, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-4


def test_batch_composition_and_order_do_not_matter():
    ids = torch.tensor([4, 90, 7, -1, 12])
    whole = Draws.of(3, ids, 1)
    order = torch.tensor([3, 0, 4])
    expected = whole.bits("a", (5, 7))[order]
    assert torch.equal(whole.select(order).bits("a", (5, 7)), expected)
    for row, sample in zip(expected, ids[order], strict=True):
        assert torch.equal(Draws.of(3, sample[None], 1).bits("a", (5, 7))[0], row)


def test_integers_are_uniform_and_inclusive():
    low, high = torch.tensor([[2, 5]]), torch.tensor([[4, 5]])
    numbers = Draws.of(0, torch.arange(9000), 0).integers("a", low, high)
    assert numbers.shape == (9000, 2) and numbers.dtype == torch.int64
    assert (numbers[:, 1] == 5).all()
    assert stats.chisquare(torch.bincount(numbers[:, 0], minlength=5)[2:].numpy()).pvalue > 1e-3
    assert set(numbers[:, 0].tolist()) == {2, 3, 4}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_bits():
    ids = torch.arange(5)
    here = Draws.of(1, ids, 2).uniform("a", (1000,))
    assert torch.equal(Draws.of(1, ids.cuda(), 2).uniform("a", (1000,)).cpu(), here)
