"""Nearest neighbours: exact search against a plain loop and scikit-learn, HNSW shards against exact search."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from raygenesis.config import IndexSettings
from raygenesis.discovery import index
from raygenesis.discovery.index import Neighbours, SearchError, build_shard, exact_search, recall, search_shards


def embeddings(n, d=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def clustered(n, d=16, seed=0):
    generator = np.random.default_rng(seed)
    centres = 5 * generator.standard_normal((20, d))
    return (centres[generator.integers(0, 20, n)] + generator.standard_normal((n, d))).astype(np.float32)


def one_by_one(rows, query, k):
    """Squared distances summed number by number; of equals the lower row."""
    squares = [sum((float(a) - float(b)) ** 2 for a, b in zip(row, query, strict=True)) for row in rows]
    nearest = sorted(range(len(rows)), key=lambda number: (squares[number], number))[:k]
    return nearest, [squares[number] ** 0.5 for number in nearest]


def sharded(folder, rows, size, settings, seed=0):
    paths = []
    for start in range(0, len(rows), size):
        paths.append(folder / f"{start}.hnsw")
        build_shard(paths[-1], rows[start : start + size], start, settings, seed)
    return paths


# --- exact search ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 6, 7, 8, 20])
def test_exact_search_is_the_plain_loop_whatever_the_chunks(n, monkeypatch):
    monkeypatch.setattr(index, "EXACT_CHUNK", 7)
    rows, queries = embeddings(n), embeddings(5, seed=1)
    for k in (1, n):
        found = exact_search(rows, queries, k)
        assert found.numbers.shape == found.distances.shape == (5, k)
        for query, numbers, distances in zip(queries, found.numbers, found.distances, strict=True):
            expected, lengths = one_by_one(rows, query, k)
            assert numbers.tolist() == expected
            np.testing.assert_allclose(distances, lengths, rtol=1e-6)


def test_exact_search_agrees_with_scikit_learn_across_a_chunk_boundary():
    rows = embeddings(index.EXACT_CHUNK + 3)
    rows[-3:] = embeddings(3, seed=2) / 10  # the last chunk holds near ones
    queries = np.concatenate([embeddings(20, seed=1) / 10, rows[:5]])
    distances, numbers = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(rows).kneighbors(queries)
    found = exact_search(rows, queries, 50)
    np.testing.assert_array_equal(found.numbers, numbers)
    np.testing.assert_allclose(found.distances, distances, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_equal_rows_come_in_their_order_and_lie_at_distance_nought(seed, monkeypatch):
    monkeypatch.setattr(index, "EXACT_CHUNK", 64)
    kinds = embeddings(30, d=48 + seed, seed=seed)
    rows = kinds[np.random.default_rng(seed).integers(0, 30, 150)]
    found = exact_search(rows, rows[:20], 150)
    for query, numbers, distances in zip(rows[:20], found.numbers, found.distances, strict=True):
        assert numbers.tolist() == one_by_one(rows, query, 150)[0]
        assert (distances == 0).sum() == (rows == query).all(1).sum()


def test_vectors_far_from_the_origin_are_told_apart():
    rows = embeddings(50, d=64) + np.float32(10_000)
    assert exact_search(rows, rows, 1).numbers.ravel().tolist() == list(range(50))
    for query, numbers in zip(rows, exact_search(rows, rows, 50).numbers, strict=True):
        assert numbers.tolist() == one_by_one(rows, query, 50)[0]


def test_more_neighbours_than_volumes_is_refused():
    with pytest.raises(SearchError, match="11 neighbours were asked for among 10 volumes"):
        exact_search(embeddings(10), embeddings(1), 11)


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(damage):
    damaged = embeddings(10)
    damaged[3, 2] = damage
    for rows, queries in ((damaged, embeddings(2)), (embeddings(10), damaged)):
        with pytest.raises(SearchError, match="NaN or infinity"):
            exact_search(rows, queries, 2)


def test_recall_is_the_share_of_true_neighbours():
    truth = Neighbours(np.array([[1, 2, 3], [4, 5, 6]]), np.zeros((2, 3), np.float32))
    found = Neighbours(np.array([[3, 9, 1], [6, 5, 4]]), np.zeros((2, 3), np.float32))
    assert recall(found, truth) == pytest.approx(5 / 6)


# --- HNSW -----------------------------------------------------------------------------------------


def test_a_shard_is_the_same_bytes_each_time_and_another_with_another_seed(tmp_path):
    rows = clustered(2000)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_shard(tmp_path / name, rows, 0, IndexSettings(), seed)
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing is left aside


def test_shards_find_the_neighbours_of_clustered_volumes(tmp_path):
    rows, queries = clustered(4000), clustered(50, seed=1)
    truth = exact_search(rows, queries, 40)
    for size in (4000, 900):
        found = search_shards(sharded(tmp_path, rows, size, IndexSettings()), queries, 40, IndexSettings())
        assert recall(found, truth) > 0.99
        np.testing.assert_allclose(found.distances[:, 0], truth.distances[:, 0], rtol=1e-4)
        assert (np.diff(found.distances, axis=1) >= 0).all()


def test_every_volume_is_found_where_more_are_asked_for_than_a_shard_holds(tmp_path):
    rows = embeddings(25)
    settings = IndexSettings(ef=1)  # raised to what is asked for
    paths = sharded(tmp_path, rows, 10, settings)  # of 10, 10 and 5
    for k in (7, 12, 25):
        found = search_shards(paths, rows, k, settings)
        np.testing.assert_array_equal(found.numbers, exact_search(rows, rows, k).numbers)


def test_shards_refuse_what_exact_search_refuses(tmp_path):
    paths = sharded(tmp_path, embeddings(10), 5, IndexSettings())
    with pytest.raises(SearchError, match="11 neighbours were asked for among 10 volumes"):
        search_shards(paths, embeddings(1), 11, IndexSettings())
    with pytest.raises(SearchError, match="NaN or infinity"):
        search_shards(paths, np.full((1, 8), np.nan, np.float32), 2, IndexSettings())


def test_equal_volumes_make_a_graph_that_still_answers(tmp_path):
    rows = np.ones((300, 4), np.float32)
    found = search_shards(sharded(tmp_path, rows, 300, IndexSettings()), rows[:2], 300, IndexSettings())
    assert [sorted(numbers) for numbers in found.numbers.tolist()] == [list(range(300))] * 2
