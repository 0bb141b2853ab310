"""The neighbours of a part's scans, searched for at once and brought up to date as an archive grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.neighbors import NearestNeighbors

from raygenesis.discovery import neighbour_table
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.exact import Neighbours
from raygenesis.discovery.index import planned_shards
from raygenesis.discovery.neighbour_table import neighbours_of, num_searched, part_path, read_neighbours, stamped
from raygenesis.discovery.row_search import RowSearch
from raygenesis.settings import IndexSettings
from raygenesis.workspace.files import write_table
from tests.support.graphs import build_shard
from tests.support.patients import embedded


def brute_force(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and numbers of the k nearest others."""
    k = min(k, len(vectors) - 1)
    distances, numbers = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors.astype(float)).kneighbors()
    return distances, numbers


class Table:
    """A table of neighbours that grows with its embeddings, as `find_neighbours` writes it, without a stream."""

    def __init__(self, root: Path, settings: IndexSettings) -> None:
        self.root, self.settings, self.shards = root, settings, []
        for name in ("neighbours", "index"):
            (root / name).mkdir(parents=True)

    def update(self, vectors: np.ndarray, skip: int | None = None, gone: Sequence[int] = ()) -> Neighbours:
        """All rows over these vectors. skip: the first number of a part that is not written, as after a kill; gone:
        numbers of scans that left the archive."""
        ids = [f"{number:04d}" for number in range(len(vectors))]
        table, names = embedded(self.root / "embeddings", ids, vectors), pa.array(ids)
        if self.settings.method == "hnsw":
            self._grow(vectors)
        ef = self.settings.ef if self.settings.method == "hnsw" else None
        folder, index = self.root / "neighbours", self.root / "index"
        is_there = ~np.isin(np.arange(len(ids)), gone)
        search = RowSearch(folder, index, table, names, is_there, tuple(self.shards), ef, self.settings)
        digest = neighbour_table.digest_of_ids(names, is_there)
        for first, searched in num_searched(folder, names, names, is_there).items():
            if searched < len(ids) and first != skip:
                rows = search.rows(
                    first, table.span(first, min(first + neighbour_table.SCANS_PER_PART, len(ids))), searched
                )
                write_table(part_path(folder, first), stamped(rows, len(ids), digest))
        return read_neighbours(folder, names, self.settings.num_neighbours) if skip is None else None

    def _grow(self, vectors: np.ndarray) -> None:
        folder, by_first = self.root / "index", {shard.first: shard for shard in self.shards}
        for first, last in planned_shards(len(vectors), self.shards, self.settings.volumes_per_shard):
            grown = by_first.get(first)
            new = vectors[first + (grown.count if grown else 0) : last]
            by_first[first] = build_shard(folder, new, first, self.settings, 0, grown)
        self.shards = [by_first[first] for first in sorted(by_first)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour_table, "SCANS_PER_PART", 64)


def clustered(number: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = 4 * generator.standard_normal((12, 16))
    return (centres[generator.integers(0, 12, number)] + generator.standard_normal((number, 16))).astype(np.float32)


def settings(method: str, k: int = 10, **chosen: object) -> IndexSettings:
    return IndexSettings(method=method, num_neighbours=k, volumes_per_shard=100, **chosen)


@pytest.mark.parametrize("method", ["exact", "hnsw"])
def test_rows_are_the_nearest_others_nearest_first(tmp_path, method):
    vectors = clustered(250)
    found = Table(tmp_path, settings(method)).update(vectors)
    distances, numbers = brute_force(vectors, 10)
    assert (found.numbers == numbers).mean() > (0.995 if method == "hnsw" else 0.9999)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-3)
    assert not (found.numbers == np.arange(250)[:, None]).any()


def test_a_grown_exact_table_is_the_one_made_at_once_to_the_byte(tmp_path):
    vectors = clustered(300)
    grown, at_once = Table(tmp_path / "grown", settings("exact")), Table(tmp_path / "at-once", settings("exact"))
    for number in (3, 40, 64, 130, 131, 300):
        grown.update(vectors[:number])
    at_once.update(vectors)
    names = sorted(path.name for path in (tmp_path / "at-once" / "neighbours").iterdir())
    assert len(names) == 5
    for name in names:
        there = (tmp_path / each / "neighbours" / name for each in ("grown", "at-once"))
        one, other = (path.read_bytes() for path in there)
        assert one == other


def test_a_grown_table_of_graphs_finds_as_much_as_one_made_at_once(tmp_path):
    vectors = clustered(600, seed=1)
    table = Table(tmp_path, settings("hnsw"))
    for number in (150, 200, 390, 600):
        found = table.update(vectors[:number])
        _, numbers = brute_force(vectors[:number], 10)
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.numbers, numbers, strict=True)]) > 0.995


def test_what_is_new_is_searched_for_in_graphs_where_that_is_cheaper(tmp_path, monkeypatch):
    vectors = clustered(400, seed=2)
    table = Table(tmp_path, settings("hnsw"))
    table.update(vectors[:150])
    monkeypatch.setattr("raygenesis.discovery.row_search.is_exact_cheaper", lambda *_: False)
    monkeypatch.setattr("raygenesis.discovery.row_search.exact_search", lambda *_: pytest.fail("searched exactly"))
    found = table.update(vectors)
    _, numbers = brute_force(vectors, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.numbers, numbers, strict=True)]) > 0.995


def test_new_scans_of_every_rank_are_found_in_the_graph_that_the_scan_itself_is_in(tmp_path, monkeypatch):
    vectors = clustered(90)
    table = Table(tmp_path, settings("hnsw", k=4))
    table.update(vectors[:40])
    monkeypatch.setattr("raygenesis.discovery.row_search.is_exact_cheaper", lambda *_: False)
    np.testing.assert_array_equal(table.update(vectors).numbers, brute_force(vectors, 4)[1])


def test_a_grown_exact_table_reads_only_blocks_of_what_is_new(tmp_path, monkeypatch):
    vectors, taken = clustered(100), []
    table = Table(tmp_path, settings("exact"))
    table.update(vectors[:60])
    monkeypatch.setattr("raygenesis.discovery.row_search.BLOCK_ROWS", 16)
    take = Embeddings.take
    monkeypatch.setattr(Embeddings, "take", lambda self, numbers: taken.append(numbers) or take(self, numbers))
    found = table.update(vectors)
    blocks = [(int(numbers[0]), len(numbers)) for numbers in taken if numbers[0] >= 60]
    assert {(60, 16), (76, 16), (92, 8)} <= set(blocks)
    assert (found.numbers == brute_force(vectors, 10)[1]).all()


@pytest.mark.parametrize("method", ["exact", "hnsw"])
def test_scans_that_left_the_archive_hold_no_places_and_come_back(tmp_path, method):
    vectors = clustered(250, seed=3)
    gone, table = [*range(20, 50), 120, 249], Table(tmp_path, settings(method))
    table.update(vectors[:200])
    for left in (gone, [], gone):
        found = table.update(vectors, gone=left)
        stay = np.setdiff1d(np.arange(250), left)
        assert (found.numbers[left] == -1).all() and not np.isin(found.numbers, left).any()
        expected = stay[brute_force(vectors[stay], 10)[1]]
        assert (found.numbers[stay] == expected).mean() > (0.99 if method == "hnsw" else 0.9999)
    more = np.concatenate([vectors, clustered(30, seed=4)])
    for left in ([*gone, *range(250, 280)], [*gone, 270]):  # what came is gone at once, or some of it
        stay = np.setdiff1d(np.arange(280), left)
        found = table.update(more, gone=left)
        assert (found.numbers[stay] == stay[brute_force(more[stay], 10)[1]]).mean() > 0.98


def test_k_beyond_the_archive_gives_all_the_others_and_one_scan_has_none(tmp_path):
    vectors = clustered(7)
    table = Table(tmp_path, settings("exact", k=32))
    assert (table.update(vectors[:1]).numbers == -1).all()
    found = table.update(vectors)
    distances, numbers = brute_force(vectors, 32)
    assert (found.numbers[:, :6] == numbers).all() and (found.numbers[:, 6:] == -1).all()
    np.testing.assert_allclose(found.distances[:, :6], distances, rtol=1e-5)
    assert np.isinf(found.distances[:, 6:]).all()


def test_copies_never_make_a_scan_its_own_neighbour(tmp_path):
    """Of more copies than are kept the scan itself need not be among the nearest that are found."""
    vectors = np.repeat(clustered(6), 20, axis=0)
    for method in ("exact", "hnsw"):
        found = Table(tmp_path / method, settings(method)).update(vectors)
        assert not (found.numbers == np.arange(120)[:, None]).any()
        assert (found.distances == 0).all() and (found.numbers // 20 == np.arange(120)[:, None] // 20).all()


def test_after_a_kill_the_parts_that_are_there_are_not_searched_again(tmp_path):
    vectors, table = clustered(200), Table(tmp_path, settings("exact"))
    table.update(vectors[:100])
    table.update(vectors, skip=64)  # cut off while it grew: part 0 is up to date, part 64 is not
    folder = tmp_path / "neighbours"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    found = table.update(vectors)
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"part-000000064.parquet"}
    assert (found.numbers == brute_force(vectors, 10)[1]).all()


def test_rows_of_other_scans_or_of_another_order_do_not_count(tmp_path):
    vectors, table = clustered(100), Table(tmp_path, settings("exact"))
    table.update(vectors)
    folder, ids = tmp_path / "neighbours", [f"{number:04d}" for number in range(100)]

    def searched(ids: list[str], gone: Sequence[int] = (), changed: Sequence[int] = ()) -> dict[int, int]:
        keys = [f"{one}, made otherwise" if number in changed else one for number, one in enumerate(ids)]
        return num_searched(folder, pa.array(ids), pa.array(keys), ~np.isin(np.arange(len(ids)), gone))

    assert searched(ids) == {0: 100, 64: 100}
    assert searched([*ids, "more"]) == searched([*ids, "more"], [100]) == {0: 100, 64: 100}
    for others in ([*ids[:80], ids[81], ids[80], *ids[82:]], ids[:90], ids[::-1]):
        assert searched(others) == {0: 0, 64: 0}
    assert searched(ids, [70]) == searched(ids, changed=[70]) == {0: 0, 64: 0}


def test_rows_are_read_back_by_the_numbers_of_their_ids(tmp_path):
    ids = pa.array(["c", "a", "b"])
    found = Neighbours(np.array([[2, -1], [0, 2]]), np.array([[0.5, np.inf], [1, 2]], np.float32))
    table = neighbour_table.table_of(found, 1, ids)
    assert table.to_pylist() == [
        {"volume_id": "a", "neighbours": ["b"], "distances": [0.5]},
        {"volume_id": "b", "neighbours": ["c", "b"], "distances": [1.0, 2.0]},
    ]
    back = neighbours_of(table, ids, 3)
    assert back.numbers.tolist() == [[2, -1, -1], [0, 2, -1]]
    assert back.distances.tolist() == [[0.5, np.inf, np.inf], [1, 2, np.inf]]
