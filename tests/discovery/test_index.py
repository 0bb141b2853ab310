"""HNSW shards: against exact search, repeatable, grown as if built at once, merged exactly, damage told."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import hnswlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygenesis.discovery.exact import Neighbours, SearchError, exact_search, recall
from raygenesis.discovery.index import merge, planned_shards, search_shard
from raygenesis.settings import IndexSettings
from raygenesis.workspace.manifest import Shard
from tests.support.graphs import build_shard


def vectors(n, d=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def clustered(n, d=16, seed=0):
    generator = np.random.default_rng(seed)
    centres = 5 * generator.standard_normal((20, d))
    return (centres[generator.integers(0, 20, n)] + generator.standard_normal((n, d))).astype(np.float32)


def sharded(folder: Path, rows, size, chosen, seed=0, shards=()) -> list[Shard]:
    """The shards over all rows, those that `shards` lack built or grown, as `build_index` does."""
    by_first = {shard.first: shard for shard in shards}
    for first, last in planned_shards(len(rows), shards, size):
        grown = by_first.get(first)
        start = first if grown is None else first + grown.count
        by_first[first] = build_shard(folder, rows[start:last], first, chosen, seed, grown)
    return [by_first[first] for first in sorted(by_first)]


def search(folder, shards, queries, k, chosen) -> Neighbours:
    return merge([search_shard(folder, shard, queries, k, chosen.ef) for shard in shards], k)


def exactly(rows, queries, k) -> Neighbours:
    return exact_search([(np.arange(len(rows)), rows)], queries, k)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- building -------------------------------------------------------------------------------------


def test_a_shard_is_the_same_bytes_each_time_and_another_with_another_seed(tmp_path):
    rows, made = clustered(2000), []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        shard = build_shard(tmp_path / name, rows, 40, IndexSettings(), seed)
        assert (shard.first, shard.count, shard.name) == (40, 2000, "shard-000000040-000002040.hnsw")
        assert [path.name for path in (tmp_path / name).iterdir()] == [shard.name]  # nothing is left aside
        made.append(((tmp_path / name / shard.name).read_bytes(), shard.xxh3))
    assert made[0] == made[1]
    assert made[0][0] != made[2][0] and made[0][1] != made[2][1]


def test_a_shards_record_makes_it_again(tmp_path):
    shard = build_shard(tmp_path, vectors(20), 0, IndexSettings(), 0)
    assert Shard(**json.loads(json.dumps(asdict(shard)))) == shard


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 12))
def test_planned_shards_hold_every_volume_once_and_leave_the_full_alone(additions, limit):
    """However volumes come, no shard but the last has room, and none that is full is planned again."""
    shards, total = {}, 0
    for more in additions:
        total += more
        planned = planned_shards(total, [shards[first] for first in sorted(shards)], limit)
        assert not {first for first, _ in planned} & {s.first for s in shards.values() if s.count == limit}
        shards |= {first: Shard("", first, last - first, "") for first, last in planned}
        told = [number for first in sorted(shards) for number in range(first, first + shards[first].count)]
        assert told == list(range(total))
        assert all(shard.count == limit for shard in list(shards.values())[:-1])


# --- searching ------------------------------------------------------------------------------------


def test_shards_find_the_neighbours_of_clustered_volumes(tmp_path):
    rows, queries, chosen = clustered(4000), clustered(50, seed=1), IndexSettings()
    truth = exactly(rows, queries, 40)
    for size in (4000, 900):
        found = search(tmp_path, sharded(tmp_path, rows, size, chosen), queries, 40, chosen)
        assert recall(found, truth) > 0.99
        np.testing.assert_allclose(found.distances[:, 0], truth.distances[:, 0], rtol=1e-4)
        assert (np.diff(found.distances, axis=1) >= 0).all()


def test_every_volume_is_found_where_more_are_asked_for_than_a_shard_holds(tmp_path):
    rows, chosen = vectors(25), IndexSettings(ef=1)  # raised to what is asked for
    shards = sharded(tmp_path, rows, 10, chosen)  # of 10, 10 and 5
    for k in (7, 12, 25):
        np.testing.assert_array_equal(search(tmp_path, shards, rows, k, chosen).numbers, exactly(rows, rows, k).numbers)


def test_shards_refuse_what_exact_search_refuses(tmp_path):
    shards = sharded(tmp_path, vectors(10), 5, IndexSettings())
    with pytest.raises(SearchError, match="11 neighbours were asked for among 10 volumes"):
        search(tmp_path, shards, vectors(1), 11, IndexSettings())
    with pytest.raises(SearchError, match="NaN or infinity"):
        search(tmp_path, shards, np.full((1, 8), np.nan, np.float32), 2, IndexSettings())


def test_equal_volumes_make_a_graph_that_still_answers(tmp_path):
    rows = np.ones((300, 4), np.float32)
    found = search(tmp_path, sharded(tmp_path, rows, 300, IndexSettings()), rows[:2], 300, IndexSettings())
    assert [sorted(numbers) for numbers in found.numbers.tolist()] == [list(range(300))] * 2


def test_a_query_that_reaches_few_costs_the_others_nothing_and_is_padded(tmp_path):
    """In a graph of hardly any links it depends on the query how many volumes are reached."""
    rows, k = np.concatenate([vectors(200, seed=2) + 1000, vectors(30, seed=9)]), 30
    shard = build_shard(tmp_path, rows, 10, IndexSettings(m=2, ef_construction=1), 0)
    found = search_shard(tmp_path, shard, rows, k, 60)
    assert found.numbers.shape == found.distances.shape == (230, k) and found.distances.dtype == np.float32
    is_there = np.isfinite(found.distances)
    assert 0 < is_there.all(1).sum() < 230 and is_there[:, :20].all()
    assert (found.numbers[~is_there] == -1).all() and (np.diff(is_there.astype(int), axis=1) <= 0).all()
    truth = np.linalg.norm(rows[:, None] - rows[found.numbers - 10], axis=2)
    np.testing.assert_allclose(found.distances[is_there], truth[is_there], rtol=1e-3, atol=1e-2)
    other = Neighbours(np.full((230, k), 7), np.full((230, k), 1e6, np.float32))
    both = merge([found, other], k)  # what another shard has comes before what is not there
    assert (both.numbers == np.where(is_there, found.numbers, 7)).all()


def test_merging_gives_the_nearest_of_all_and_of_equals_the_lower_number():
    one = Neighbours(np.array([[5, 1], [2, 9]]), np.array([[0.5, 2], [1, 3]], np.float32))
    other = Neighbours(np.array([[4, 8, 3], [7, 6, 0]]), np.array([[0.5, 1, 2], [1, 2, 3]], np.float32))
    found = merge([one, other], 4)
    assert found.numbers.tolist() == [[4, 5, 8, 1], [2, 7, 6, 0]]
    assert found.distances.tolist() == [[0.5, 0.5, 1, 2], [1, 1, 2, 3]]
    assert merge([other, one], 4).numbers.tolist() == found.numbers.tolist()


# --- growing --------------------------------------------------------------------------------------


def test_a_grown_index_answers_like_one_built_at_once_and_keeps_full_shards(tmp_path):
    rows, queries, chosen = clustered(3000), clustered(50, seed=1), IndexSettings(m=12, ef=100)
    truth = exactly(rows, queries, 30)
    shards, before = [], {}
    for total in (700, 1100, 2600, 3000):
        shards = sharded(tmp_path, rows[:total], 1000, chosen, shards=shards)
        now = contents(tmp_path)
        full = [shard.name for shard in shards if shard.count == 1000]
        assert {name: now[name] for name in full if name in before} == {n: before[n] for n in full if n in before}
        for name in before.keys() & {shard.name for shard in shards}:
            assert now[name] == before[name]
        before = now
    assert [(shard.first, shard.count) for shard in shards] == [(0, 1000), (1000, 1000), (2000, 1000)]
    at_once = tmp_path / "at-once"
    at_once.mkdir()
    grown = search(tmp_path, shards, queries, 30, chosen)
    built = search(at_once, sharded(at_once, rows, 1000, chosen), queries, 30, chosen)
    assert recall(grown, truth) > 0.99 and recall(built, truth) > 0.99
    assert recall(grown, built) > 0.99


def test_growing_is_repeatable(tmp_path):
    rows, ends = clustered(600), []
    for name in "ab":
        (tmp_path / name).mkdir()
        first = build_shard(tmp_path / name, rows[:400], 0, IndexSettings(), 3)
        ends.append(build_shard(tmp_path / name, rows[400:], 0, IndexSettings(), 3, first))
    assert ends[0] == ends[1] and ends[0].count == 600
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_grown_shard_numbers_its_volumes_on(tmp_path):
    rows = vectors(30)
    first = build_shard(tmp_path, rows[:10], 70, IndexSettings(), 0)
    grown = build_shard(tmp_path, rows[10:], 70, IndexSettings(), 0, first)
    assert (grown.first, grown.count) == (70, 30) and grown.name != first.name
    found = search_shard(tmp_path, grown, rows, 1, 50)
    assert found.numbers.ravel().tolist() == list(range(70, 100))
    assert search_shard(tmp_path, first, rows[:10], 1, 50).numbers.ravel().tolist() == list(range(70, 80))


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 1000, -1])
def test_a_flipped_bit_or_a_missing_file_is_one_sentence_before_the_graph_is_opened(tmp_path, where, monkeypatch):
    shard = build_shard(tmp_path, clustered(100), 0, IndexSettings(), 0)
    path = tmp_path / shard.name
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(hnswlib.Index, "load_index", lambda *_: pytest.fail("opened"), raising=False)
    for words in ("is damaged", "is missing"):
        for ask in (
            lambda: search_shard(tmp_path, shard, clustered(1), 1, 10),
            lambda: build_shard(tmp_path, clustered(5), 0, IndexSettings(), 0, shard),
        ):
            with pytest.raises(SearchError, match=rf"{shard.name} {words}: remove .* and run `raygenesis neighbours`"):
                ask()
        path.unlink(missing_ok=True)
