"""Exact search against a plain loop and scikit-learn, whatever the blocks and the scale; and when it is the cheaper."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from raygenesis.discovery import exact
from raygenesis.discovery.exact import Neighbours, SearchError, exact_search, is_exact_cheaper, nearest, recall
from raygenesis.settings import IndexSettings

many = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def vectors(n, d=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def in_blocks(rows, size):
    """Numbers and vectors of `rows`, `size` at a time."""
    return ((np.arange(n, min(n + size, len(rows))), rows[n : n + size]) for n in range(0, len(rows), size))


def one_by_one(rows, query, k):
    """Squared distances summed number by number; of equals the lower row."""
    squares = [sum((float(a) - float(b)) ** 2 for a, b in zip(row, query, strict=True)) for row in rows]
    first = sorted(range(len(rows)), key=lambda number: (squares[number], number))[:k]
    return first, [squares[number] ** 0.5 for number in first]


def check(rows, queries, k, size):
    found = exact_search(in_blocks(rows, size), queries, k)
    assert found.numbers.shape == found.distances.shape == (len(queries), k)
    assert (found.numbers.dtype, found.distances.dtype) == (np.int64, np.float32)
    for query, numbers, distances in zip(queries, found.numbers, found.distances, strict=True):
        expected, lengths = one_by_one(rows, query, k)
        assert numbers.tolist() == expected
        np.testing.assert_allclose(distances, np.float32(lengths), rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("n", [1, 6, 7, 8, 20])
def test_it_is_the_plain_loop_whatever_the_blocks(n):
    for k in (1, n):
        for size in (1, 7, 100):
            check(vectors(n), vectors(5, seed=1), k, size)


@many
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.floats(-40, 37))
def test_nothing_near_is_lost_at_any_scale(seed, n, d, size, power):
    """Whatever the size of the numbers, what is sorted out is not among the nearest."""
    rows, queries = (vectors(m, d, s) * np.float32(10) ** np.float32(power) for m, s in ((n, seed), (3, seed + 1)))
    with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        check(rows, queries, 1 + seed % n, size)


@many
@given(st.integers(0, 10_000), st.floats(1, 7), st.floats(-5, 0), st.integers(2, 40))
def test_close_volumes_far_from_the_origin_are_told_apart(seed, far, close, size):
    """Clusters whose width is near the rounding of their place: many equal distances, and errors as large as they."""
    generator = np.random.default_rng(seed)
    centres = 10**far * generator.standard_normal((3, 16))
    rows = (centres[generator.integers(0, 3, 60)] + 10**close * generator.standard_normal((60, 16))).astype(np.float32)
    check(rows, rows[:4], 20, size)


@pytest.mark.parametrize("power", np.arange(-24, -17, 0.5))
def test_volumes_so_close_that_their_squares_all_but_vanish_are_told_apart(power):
    for seed in range(12):
        rows, queries = (vectors(n, 5, s) * np.float32(10**power) for n, s in ((40, seed), (4, seed + 50)))
        check(rows, queries, 3, 10)


def test_a_near_volume_whose_square_overflows_is_kept():
    """|a|² + |b|² is beyond single precision here, and 2ab is not."""
    rows = np.array([[0, 0], [1.06e19, 0.9e19]], np.float32)
    with np.errstate(over="ignore"):
        found = exact_search(in_blocks(rows, 1), np.array([[1.4e19, 0], [-1.4e19, 0]], np.float32), 1)
    assert found.numbers.ravel().tolist() == [1, 0]


def test_it_agrees_with_scikit_learn_on_many():
    rows = vectors(9000)
    rows[-3:] = vectors(3, seed=2) / 10  # the last block holds near ones
    queries = np.concatenate([vectors(20, seed=1) / 10, rows[:5]])
    distances, numbers = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(rows).kneighbors(queries)
    found = exact_search(in_blocks(rows, 4000), queries, 50)
    np.testing.assert_array_equal(found.numbers, numbers)
    np.testing.assert_allclose(found.distances, distances, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_equal_rows_come_in_their_order_and_lie_at_distance_nought(seed):
    kinds = vectors(30, d=48 + seed, seed=seed)
    rows = kinds[np.random.default_rng(seed).integers(0, 30, 150)]
    for k, size in ((150, 64), (20, 64), (20, 7)):
        found = exact_search(in_blocks(rows, size), rows[:10], k)
        for query, numbers, distances in zip(rows[:10], found.numbers, found.distances, strict=True):
            assert numbers.tolist() == one_by_one(rows, query, k)[0]
            assert (distances == 0).sum() == (rows == query).all(1).sum()


def test_of_equals_the_lower_number_comes_first_though_it_comes_later():
    blocks = [(np.array([7, 9]), np.ones((2, 3), np.float32)), (np.array([2, 4]), np.ones((2, 3), np.float32))]
    assert exact_search(blocks, np.zeros((1, 3), np.float32), 3).numbers.tolist() == [[2, 4, 7]]


def test_blocks_may_leave_numbers_out_and_be_empty():
    rows = vectors(40)
    keep = np.arange(3, 40, 3)
    blocks = [(keep[:5], rows[keep[:5]]), (keep[:0], rows[:0]), (keep[5:], rows[keep[5:]])]
    found = exact_search(blocks, rows[:2], 6)
    for query, numbers in zip(rows[:2], found.numbers, strict=True):
        assert numbers.tolist() == keep[one_by_one(rows[keep], query, 6)[0]].tolist()


def test_nearly_all_of_spread_volumes_are_sorted_out(monkeypatch):
    """What makes it quick: few squared differences are summed."""
    kept = []
    plain = exact._within
    monkeypatch.setattr(exact, "_within", lambda *given: kept.append(plain(*given)) or kept[-1])
    rows, queries = vectors(4000, d=64), vectors(4, d=64, seed=1)
    found = exact_search(in_blocks(rows, 1000), queries, 10)
    assert 4 * 10 <= sum(int(near.sum()) for near in kept) < 4 * 4 * 15
    assert found.numbers.tolist() == [one_by_one(rows, query, 10)[0] for query in queries]


def test_many_searches_take_no_more_memory_at_once_than_some():
    rows, queries = vectors(8192, 4), vectors(4096, 4, seed=1)
    tracemalloc.start()
    found = exact_search([(np.arange(8192), rows)], queries, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4096 * 8192 * 4  # of one number a pair; of pairs compared there are several
    few = exact_search([(np.arange(8192), rows)], queries[700:710], 3)
    np.testing.assert_array_equal(found.numbers[700:710], few.numbers)


def test_more_neighbours_than_volumes_is_refused():
    with pytest.raises(SearchError, match="11 neighbours were asked for among 10 volumes"):
        exact_search(in_blocks(vectors(10), 4), vectors(1), 11)


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(damage):
    damaged = vectors(10)
    damaged[3, 2] = damage
    for rows, queries in ((damaged, vectors(2)), (vectors(10), damaged)):
        with pytest.raises(SearchError, match="NaN or infinity"):
            exact_search(in_blocks(rows, 100), queries, 2)


def test_nearest_are_the_columns_of_least_square():
    squares = np.array([[3.0, 1, 2, 1], [0, 0, 0, 5]])
    numbers = np.array([[1, 9, 3, 4], [8, 7, 6, 5]])
    found, least = nearest(numbers, squares, 3)
    assert found.tolist() == [[4, 9, 3], [6, 7, 8]]
    assert least.tolist() == [[1, 1, 2], [0, 0, 0]]


def test_recall_is_the_share_of_true_neighbours():
    truth = Neighbours(np.array([[1, 2, 3], [4, 5, 6]]), np.zeros((2, 3), np.float32))
    found = Neighbours(np.array([[3, 9, 1], [6, 5, 4]]), np.zeros((2, 3), np.float32))
    assert recall(found, truth) == pytest.approx(5 / 6)


# --- which is cheaper -----------------------------------------------------------------------------


def cheaper(num_vectors=1_000_000, num_queries=44, num_indexed=0, size=512, k=232, **chosen):
    return is_exact_cheaper(num_vectors, num_queries, num_indexed, size, k, IndexSettings(**chosen))


def test_few_searches_are_exact_and_many_among_indexed_volumes_are_not():
    assert cheaper(num_queries=1) and cheaper() and cheaper(num_vectors=1000, num_queries=1000)
    assert not cheaper(num_indexed=1_000_000, num_queries=1000)
    assert not cheaper(num_queries=1_000_000)  # then the graphs are worth building


@many
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 1000), st.integers(1, 2000))
def test_the_more_is_indexed_the_less_is_searched_exactly(num_queries, num_indexed, k, size):
    sizes = {"num_queries": num_queries, "k": k, "size": size}
    if cheaper(num_indexed=num_indexed, **sizes):
        assert cheaper(num_indexed=num_indexed // 2, **sizes)
        assert cheaper(num_indexed=num_indexed // 2, **sizes, ef=400)  # and a wider search pays less
    if not cheaper(num_indexed=num_indexed, **sizes):
        assert not cheaper(num_indexed=num_indexed, **{**sizes, "num_queries": 2 * num_queries})
