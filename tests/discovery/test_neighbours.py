"""Neighbours among patients of whom everything is known, and the index: exact or HNSW, measured and grown."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from raygenesis.discovery import neighbours
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.exact import SearchError, exact_search
from raygenesis.discovery.neighbours import SPARE_NEIGHBOURS, NeighbourFinder, searcher, typical_distance
from raygenesis.discovery.patients import Patients
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import DiscoverySettings, IndexSettings, Settings
from raygenesis.workspace.manifest import IndexManifest
from raygenesis.workspace.workspace import Workspace
from tests.support.patients import HELD_OUT, SUBJECTS, embedded, on_a_line, patients
from tests.support.stores import finish_embeddings

# --- who is a neighbour ---------------------------------------------------------------------------


def people(subjects: list[int], held_out: list[int] = (), missing: list[int] = ()) -> Patients:
    """Volume n is of subject subjects[n]; some subjects are held out, some volumes no longer in the archive."""
    numbered = np.array(subjects)
    is_there = ~np.isin(np.arange(len(numbered)), missing)
    ids = [f"{number:04d}" for number in range(len(numbered))]
    return Patients(ids, numbered, np.isin(numbered, held_out), np.ones(len(numbered), bool), is_there)


def exactly(table: Embeddings):
    return lambda queries, k, among: exact_search(table.blocks(among), queries, k)


def found(known: Patients, table: Embeddings, references, split, wanted, least=0.0, seen=None, search=None):
    seen = [[number] for number in references] if seen is None else seen
    return NeighbourFinder(known, table, search or exactly(table), least).find(references, split, wanted, seen)


def test_neighbours_go_by_distance_one_scan_a_subject_and_pass_over_the_small(tmp_path):
    known, table = patients(), on_a_line(tmp_path)

    def of(split, reference, wanted):
        (numbers,) = found(known, table, [reference], split, wanted)
        return numbers

    # Of subject b scan 2 is nearer to scan 3 than scan 1; scan 4 is too small, so 5 comes next.
    assert of(TRAINING, 3, 2) == [2, 5]
    assert of(TRAINING, 0, 4) == [1, 3, 5, 6]
    assert of(TRAINING, 2, 1) == [3]  # not scan 1, which is of the reference's own subject
    assert of(TRAINING, 6, 0) == []
    assert of(VALIDATION, 0, 3) == [7, 8, 10]
    assert of(VALIDATION, 6, 4) == [7, 8, 10, 11]
    assert of(VALIDATION, 6, 9) == [7, 8, 10, 11]  # and no more than there are
    assert {SUBJECTS[number] for number in [7, 8, 10, 11]} == {SUBJECTS[n] for n in np.flatnonzero(HELD_OUT)}


def test_each_of_many_references_has_its_own_and_volumes_that_are_gone_are_nobodys(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    gone = [5, 17, 30]
    known = people([n // 2 for n in range(60)], held_out=list(range(20, 30)), missing=gone)
    table = embedded(tmp_path, known.ids, vectors)
    references = [0, 12, 39]
    for split in (TRAINING, VALIDATION):
        got = found(known, table, references, split, 8)
        for reference, numbers in zip(references, got, strict=True):
            order = np.argsort(np.linalg.norm(vectors - vectors[reference], axis=1), kind="stable")
            subjects, expected = {known.subjects[reference]}, []
            for number in order:
                if known.eligible(split)[number] and known.subjects[number] not in subjects:
                    subjects.add(known.subjects[number])
                    expected.append(int(number))
            assert numbers == expected[:8] and not set(numbers) & set(gone)


@pytest.mark.parametrize("least", [0.0, 0.01])
def test_a_copy_under_another_subject_counts_once(tmp_path, least):
    """The same scan, not quite the same vector: of it and its copies the nearest alone is a neighbour."""
    vectors = np.arange(12.0)[:, None] * np.ones((1, 4))
    vectors[5] = vectors[2] + 0.001  # copies of 2, of the reference and of the copy
    vectors[7] = vectors[0] - 0.001
    vectors[9] = vectors[5] + 0.001
    known = people(list(range(12)))
    table = embedded(tmp_path, known.ids, vectors)
    (numbers,) = found(known, table, [0], TRAINING, 6, least)
    assert numbers == ([1, 2, 3, 4, 6, 8] if least else [7, 1, 2, 5, 9, 3])


def test_exact_copies_count_once_even_where_no_distance_is_asked_for(tmp_path):
    vectors = np.repeat(np.arange(5.0), 2)[:, None] * np.ones((1, 4))
    known = people(list(range(10)))
    assert found(known, embedded(tmp_path, known.ids, vectors), [0], TRAINING, 9) == [[2, 4, 6, 8]]


def test_a_held_out_copy_of_a_scan_that_is_learnt_from_is_passed_over(tmp_path):
    vectors = np.arange(12.0)[:, None] * np.ones((1, 4))
    vectors[8] = vectors[0] + 0.001  # held out: copies of the reference and of a neighbour, and one far from both
    vectors[9] = vectors[2] + 0.001
    known = people(list(range(12)), held_out=[8, 9, 10, 11])
    table = embedded(tmp_path, known.ids, vectors)
    (training,) = found(known, table, [0], TRAINING, 3, 0.01)
    seen = [[0, *training]]
    assert found(known, table, [0], VALIDATION, 2, 0.01, seen) == [[10, 11]]
    assert found(known, table, [0], VALIDATION, 2, 0.0, seen) == [[8, 9]]


def test_enough_are_found_though_one_subject_has_hundreds_of_scans(tmp_path):
    """The search is widened until there are enough, for those references alone that lack some."""
    assert SPARE_NEIGHBOURS == 32
    crowd = 4 * SPARE_NEIGHBOURS
    vectors = np.concatenate([np.linspace(0, 1, crowd), np.arange(2.0, 12), [-500, -501, -502, -504]])[:, None]
    known = people([0] * crowd + list(range(1, 11)) + [20, 21, 22, 23])
    table = embedded(tmp_path, known.ids, vectors * np.ones((1, 3)))
    asked = []

    def search(queries, k, among):
        asked.append((len(queries), k))
        return exact_search(table.blocks(among), queries, k)

    first, last = found(known, table, [crowd, crowd + 11], TRAINING, 3, search=search)
    assert first == [crowd - 1, crowd + 1, crowd + 2] and last == [crowd + 10, crowd + 12, crowd + 13]
    assert asked == [(2, 35), (1, 70), (1, 140)]
    asked.clear()
    (numbers,) = found(known, table, [0], TRAINING, 5, search=search)
    assert numbers == [crowd, crowd + 1, crowd + 2, crowd + 3, crowd + 4]
    assert asked == [(1, 37), (1, 74), (1, 142)]  # and never more than there are


def test_the_typical_distance_is_the_median_between_two_training_patients(tmp_path):
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((400, 16)).astype(np.float32)
    vectors[300:] += 1000  # held out
    known = people(list(range(400)), held_out=list(range(300, 400)))
    table = embedded(tmp_path, known.ids, vectors)
    plain = np.median(np.linalg.norm(vectors[:300, None] - vectors[None, :300], axis=2)[np.triu_indices(300, 1)])
    assert typical_distance(table, known, 0) == pytest.approx(plain, rel=0.05)
    assert typical_distance(table, known, 0) == typical_distance(table, known, 0)
    (tmp_path / "one").mkdir()
    assert typical_distance(embedded(tmp_path / "one", ["a"], vectors[:1]), people([0]), 0) == 0


# --- the index ------------------------------------------------------------------------------------


def settings(method: str = "hnsw", neighbours: int = 10, references: int = 2, **index: object) -> Settings:
    discovery = DiscoverySettings(num_references=references, num_neighbours=neighbours, num_validation_neighbours=1)
    return Settings(discovery=discovery, index=IndexSettings(method=method, **index))


def workspace_of(root: Path, vectors: np.ndarray, fingerprint: str = "first", encoder: str = "given") -> Workspace:
    """Embeddings of volumes 0000, 0001 …, as `embed` leaves them."""
    made = Workspace.open(root)
    grow(made, [f"{number:04d}" for number in range(len(vectors))], vectors, fingerprint, encoder)
    return made


def grow(made: Workspace, ids: list[str], vectors: np.ndarray, fingerprint: str, encoder: str = "given") -> None:
    embedded(made.embeddings, ids, vectors)
    finish_embeddings(made, fingerprint, len(ids), encoder)


def build_index(made: Workspace, chosen: Settings) -> IndexManifest:
    return neighbours.build_index(made, chosen.index, chosen.discovery, chosen.seed)


def gaussian(n: int, d: int = 64, seed: int = 0) -> np.ndarray:
    """The hardest for a graph: nothing is near anything."""
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def shards_of(made: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(made.index.glob("shard-*.hnsw"))}


@pytest.mark.parametrize("method", ["exact", "hnsw"])
def test_the_searcher_answers_among_those_asked_for_whatever_the_method(ray_cluster, tmp_path, method):
    vectors = gaussian(300, 6)
    made = workspace_of(tmp_path, vectors)
    index = build_index(made, settings(method, volumes_per_shard=120))
    assert index.method == method and len(index.shards) == (3 if method == "hnsw" else 0)
    search = searcher(made, index, IndexSettings(method="hnsw"))
    for share in (1.0, 0.4, 0.03):
        among = np.random.default_rng(2).random(300) < share
        k = min(9, int(among.sum()))
        got = search(vectors[:5], k, among)
        truth = exact_search([(np.flatnonzero(among), vectors[among])], vectors[:5], k)
        np.testing.assert_array_equal(got.numbers, truth.numbers)
        np.testing.assert_allclose(got.distances, truth.distances, atol=1e-3)


def test_ef_is_raised_until_the_recall_is_met_and_both_are_told(ray_cluster, tmp_path, capsys):
    vectors = gaussian(2000)
    made = workspace_of(tmp_path, vectors)
    small = {"m": 6, "ef_construction": 20, "ef": 4}
    index = build_index(made, settings(min_recall=0.97, **small))
    assert index.recall >= 0.97 and index.ef > 4
    said = capsys.readouterr().out
    assert "is less than 0.97: twice the ef" in said and f"at ef={index.ef}" in said
    assert json.loads((made.index / "manifest.json").read_text())["recall"] == index.recall
    # What was measured holds for other searches, and with the first `ef` it would not.
    queries = gaussian(60, seed=5)
    everyone = np.ones(2000, bool)
    truth = exact_search([(np.arange(2000), vectors)], queries, 10).numbers

    def share(ef):
        got = searcher(made, replace(index, ef=ef), IndexSettings(method="hnsw"))(queries, 10, everyone).numbers
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(got.tolist(), truth.tolist(), strict=True)])

    assert share(index.ef) > 0.95
    (shard,) = index.shards
    narrow = neighbours.search_shard(made.index, shard, queries, 10, 4).numbers
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(narrow.tolist(), truth.tolist(), strict=True)]) < 0.9


def test_a_recall_that_no_width_meets_is_refused_naming_the_keys(ray_cluster, tmp_path):
    made = workspace_of(tmp_path, gaussian(2000))
    with pytest.raises(SearchError, match=r"nearest even at ef=2000, and index\.min_recall=1: raise index\.m, or give"):
        build_index(made, settings(min_recall=1, m=2, ef_construction=1, ef=500))
    assert not (made.index / "manifest.json").exists()


def test_auto_is_exact_for_few_scans_and_graphs_where_they_pay(ray_cluster, tmp_path):
    vectors = gaussian(1500, 8)
    usual = workspace_of(tmp_path / "usual", vectors)
    assert build_index(usual, settings("auto")).method == "exact" and not shards_of(usual)
    narrow = workspace_of(tmp_path / "narrow", vectors)
    chosen = settings("auto", 1, ef=1, ef_construction=1, min_recall=0.01, num_neighbours=1)
    assert not neighbours.is_exact_cheaper(1500, 1500, 0, 8, 2, chosen.index)
    assert build_index(narrow, chosen).method == "hnsw" and len(shards_of(narrow)) == 1


def test_a_second_call_does_nothing_and_another_setting_is_refused(ray_cluster, tmp_path, capsys):
    made = workspace_of(tmp_path, gaussian(200, 6))
    first = build_index(made, settings())
    before = {path: path.stat().st_mtime_ns for path in made.index.iterdir()}
    capsys.readouterr()
    assert build_index(made, settings()) == first
    assert "index: nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.index.iterdir()} == before
    with pytest.raises(WorkspaceError, match=r"index\.m was 16 and is now 17"):
        build_index(made, settings(m=17))


def test_an_index_grows_by_the_new_volumes_and_answers_for_all(ray_cluster, tmp_path):
    vectors, chosen = gaussian(900, 8), settings(volumes_per_shard=200)
    made = workspace_of(tmp_path, vectors[:500])
    build_index(made, chosen)
    before = shards_of(made)
    times = {name: (made.index / name).stat().st_mtime_ns for name in before}
    grow(made, [f"{number:04d}" for number in range(900)], vectors, "second")
    index = build_index(made, chosen)
    after = shards_of(made)
    assert asdict(index.counts) == {"volumes": 900, "shards": 5, "indexed_before": 500}
    full = [name for name in before if name in after]
    assert len(full) == 2 and [after[name] for name in full] == [before[name] for name in full]
    assert [(made.index / name).stat().st_mtime_ns for name in full] == [times[name] for name in full]
    assert sorted(after) == [shard.name for shard in index.shards]  # the half-full one made way
    everyone, queries = np.ones(900, bool), gaussian(20, 8, seed=9)
    truth = exact_search([(np.arange(900), vectors)], queries, 10).numbers
    np.testing.assert_array_equal(
        searcher(made, index, IndexSettings(method="hnsw"))(queries, 10, everyone).numbers, truth
    )
    more = chosen.discovery.model_copy(update={"num_neighbours": chosen.discovery.num_neighbours + 5})
    again = build_index(made, chosen.model_copy(update={"discovery": more}))
    assert again.shards == index.shards and shards_of(made) == after  # another K is measured, not built


def test_after_a_kill_only_the_shards_that_are_missing_are_built(ray_cluster, tmp_path):
    vectors, chosen = gaussian(500, 8), settings(volumes_per_shard=200)
    made = workspace_of(tmp_path, vectors)
    index = build_index(made, chosen)
    before = shards_of(made)
    times = {name: (made.index / name).stat().st_mtime_ns for name in before}
    (made.index / "manifest.json").unlink()  # what a job removes when it begins
    _, second, third = index.shards
    (made.index / second.name).unlink()
    (made.index / third.name).with_suffix(".json").unlink()  # killed between a graph and its record
    again = build_index(made, chosen)
    assert again.shards == index.shards and shards_of(made) == before
    assert again.counts.indexed_before == 200
    kept = [name for name in before if (made.index / name).stat().st_mtime_ns == times[name]]
    assert kept == [index.shards[0].name]


@pytest.mark.parametrize("change", ["encoder", "order"])
def test_an_index_of_other_embeddings_is_built_anew(ray_cluster, tmp_path, change):
    """Embeddings removed and made again may number the volumes in another order: graphs of the old order are wrong."""
    vectors, chosen = gaussian(300, 8), settings(volumes_per_shard=100)
    made = workspace_of(tmp_path, vectors)
    build_index(made, chosen)
    before = shards_of(made)
    ids = [f"{number:04d}" for number in range(300)]
    if change == "order":
        grow(made, ids[::-1], vectors[::-1].copy(), "second")
    else:
        vectors = gaussian(300, 8, seed=1)
        grow(made, ids, vectors, "second", encoder="other")
    index = build_index(made, chosen)
    assert index.counts.indexed_before == 0 and not set(shards_of(made).values()) & set(before.values())
    table = Embeddings(made.embeddings)
    found = searcher(made, index, IndexSettings(method="hnsw"))(
        table.take(np.arange(300)), 1, np.ones(300, bool)
    ).numbers
    assert found.ravel().tolist() == list(range(300))


def test_a_damaged_shard_is_one_sentence_from_the_worker(ray_cluster, tmp_path):
    made = workspace_of(tmp_path, gaussian(200, 6))
    index = build_index(made, settings())
    (name,) = shards_of(made)
    content = bytearray((made.index / name).read_bytes())
    content[500] ^= 4
    (made.index / name).write_bytes(content)
    with pytest.raises(SearchError, match=rf"{name} is damaged: remove .*index and run `raygenesis neighbours`"):
        searcher(made, index, IndexSettings(method="hnsw"))(gaussian(1, 6), 3, np.ones(200, bool))
