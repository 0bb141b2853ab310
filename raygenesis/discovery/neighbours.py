"""Who is like whom: the index over the embeddings, and the search for each reference's neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from raygenesis.cluster import fan_out
from raygenesis.cluster.gauges import set_gauge
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.streams import RETRIED, PartSource, SourcePart, StreamProgress, read_parts, write_parts
from raygenesis.discovery.embeddings import Embeddings, present_embeddings
from raygenesis.discovery.exact import Neighbours, SearchError, exact_search, is_exact_cheaper, recall
from raygenesis.discovery.index import (
    build_graph,
    drop_shards,
    merge,
    planned_shards,
    publish_shard,
    record_shard,
    recorded_shards,
    search_shard,
)
from raygenesis.discovery.neighbour_table import digest_of_ids
from raygenesis.discovery.patients import Patients
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.schema import TRAINING
from raygenesis.settings import DiscoverySettings, IndexSettings
from raygenesis.settings.streams import RECALL_QUERIES, TYPICAL_DISTANCE
from raygenesis.text.amounts import size
from raygenesis.workspace.artifacts import INDEX
from raygenesis.workspace.files import Place
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.manifest import EmbeddingsManifest, IndexCounts, IndexManifest, Shard
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

NUM_QUERIES = 100  # that recall is measured on
TYPICAL_VOLUMES = 500

# Asked for beyond K, for a subject's further scans and for duplicates; doubled until there are enough.
SPARE_NEIGHBOURS = 32

# (queries [q, d], how many, which volumes: bool [n]) → the nearest of these, and as many where the index has them.
Search = Callable[[NDArray[np.float32], int, NDArray[np.bool_]], Neighbours]


def build_index(
    workspace: Workspace, settings: IndexSettings, discovery: DiscoverySettings, seed: int
) -> IndexManifest:
    """HNSW shards over the embeddings, where they are cheaper than exact search or asked for; returns the manifest.

    An index that is there is grown by the volumes it lacks. `ef` is raised until the demanded recall is met. Raises
    WorkspaceError if no volume has an embedding.
    """
    embedded = present_embeddings(workspace)
    decisive = settings.model_dump(mode="json", exclude={"num_neighbours"})
    stage = Stage(INDEX, workspace.index, {"seed": seed, "index": decisive}, {})
    earlier = stage.finished()
    # How many are searched for decides what is measured, not what is built; each scan is its own nearest.
    asked = (max(settings.num_neighbours, discovery.num_neighbours) + 1,)
    if earlier is not None and (earlier.embeddings, earlier.asked) == (embedded.fingerprint, asked):
        say("index", f"nothing to do: it is in {workspace.index}")
        return earlier
    watch = Stopwatch()
    embeddings = Embeddings(workspace.embeddings)
    embeddings.check()
    keys, encoder = embeddings.keys(), encoder_of(embedded)
    num_volumes = len(keys)
    if not num_volumes:
        raise WorkspaceError(f"no scan has an embedding: see {workspace.embeddings / 'failures.parquet'}")
    shards = _shards_there(workspace.index, earlier, encoder, keys)
    num_indexed = sum(shard.count for shard in shards)
    method = settings.method
    if method == "auto":
        k = settings.num_neighbours + 1
        is_exact = is_exact_cheaper(num_volumes, num_volumes, num_indexed, embeddings.size, k, settings)
        method = "exact" if is_exact else "hnsw"
    with stage.claimed():
        # Graphs that are there stay, searched or not.
        ef, found = None, 1.0
        if method == "hnsw":
            volumes_of = partial(_volumes_of, encoder, keys)
            shards = _grow(workspace.index, embeddings, volumes_of, shards, settings, seed)
            k = min(asked[0], num_volumes)
            drawn = RECALL_QUERIES.generator(seed).permutation(num_volumes)[:NUM_QUERIES]
            ef, found = _measure(workspace.index, embeddings, shards, embeddings.take(drawn), k, settings)
        manifest = IndexManifest(
            counts=IndexCounts(volumes=num_volumes, shards=len(shards), indexed_before=num_indexed),
            seconds=watch.seconds, method=method, embeddings=embedded.fingerprint, encoder=encoder,
            ids=digest_of_ids(keys), asked=asked, shards=tuple(shards), ef=ef, recall=found,
        )  # fmt: skip
        manifest = stage.finish(manifest, content=[embedded.fingerprint, method])
    _summarise(manifest, workspace.index)
    return manifest


def _shards_there(folder: Place, earlier: IndexManifest | None, encoder: str, keys: pa.StringArray) -> list[Shard]:
    """The shards that hold these volumes as this encoder embeds them: of the manifest, or of a job that was cut off."""
    if earlier is not None:
        num_indexed = sum(shard.count for shard in earlier.shards)
        if (earlier.encoder, earlier.ids) == (encoder, digest_of_ids(keys[:num_indexed])):
            return list(earlier.shards)
    return recorded_shards(folder, partial(_volumes_of, encoder, keys))


def _volumes_of(encoder: str, keys: pa.StringArray, first: int, last: int) -> str:
    """What identifies the vectors of the volumes numbered first to last - 1."""
    return digest([encoder, digest_of_ids(keys[first:last])])


def encoder_of(embedded: EmbeddingsManifest) -> str:
    """What the vectors of embeddings follow from, whatever scans there are."""
    return digest([embedded.inputs, embedded.settings])


def searcher(workspace: Workspace, index: IndexManifest, settings: IndexSettings) -> Search:
    """What answers searches among the embeddings as the index's manifest says.

    With `index.method=auto` graphs are not asked where so few volumes count that a loop over these is cheaper.
    """
    embeddings = Embeddings(workspace.embeddings)
    shards, ef, is_free = index.shards, index.ef, settings.method == "auto"

    def search(queries: NDArray[np.float32], k: int, among: NDArray[np.bool_]) -> Neighbours:
        share = max(float(among.mean()), 1e-9)
        asked = min(len(among), round(k / share * 1.1) + SPARE_NEIGHBOURS)
        num = len(among)
        while ef is not None and not (
            is_free and is_exact_cheaper(num, len(queries), num, queries.shape[1], asked, settings)
        ):
            found = search_shards(workspace.index, shards, queries, asked, ef)
            is_among = among[found.numbers] & np.isfinite(found.distances)
            if is_among.sum(1).min() >= k:
                # The first k of each row: stable, so the nearest stay first.
                order = np.argsort(~is_among, axis=1, kind="stable")[:, :k]
                numbers, distances = found.numbers, found.distances
                return Neighbours(np.take_along_axis(numbers, order, 1), np.take_along_axis(distances, order, 1))
            if asked == num:
                break  # graphs do not reach so many
            asked = min(num, 2 * asked)
        return exact_search(embeddings.blocks(among), queries, k)

    return search


def search_shards(folder: Place, shards: Sequence[Shard], queries: NDArray[np.float32], k: int, ef: int) -> Neighbours:
    """The k nearest over all shards in a folder, each searched by a task of its own."""
    found = list(fan_out.each(_search_one, shards, folder, queries, k, ef))
    return merge(found, min(k, sum(one.numbers.shape[1] for one in found)))


def vector_source(embeddings: Embeddings, spans: Sequence[tuple[int, int]]) -> PartSource:
    """The numbers and vectors of some spans of volumes, first to last - 1, a part each."""
    size = embeddings.size
    schema = pa.schema([("number", pa.int64()), ("embedding", pa.list_(pa.float32(), size))])
    _ = embeddings.num_volumes  # counted here, once for the copies that parts are read with

    def read(first: int, last: int) -> pa.Table:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.span(first, last).ravel()), size)
        return pa.table([pa.array(np.arange(first, last)), vectors], schema=schema)

    parts = [
        SourcePart(partial(read, *span), span[1] - span[0], (span[1] - span[0]) * (4 * size + 8)) for span in spans
    ]
    return PartSource(parts, schema)


def vectors_of(part: pa.Table) -> NDArray[np.float32]:
    """The vectors [n, d] of a part of `vector_source`."""
    cells = part["embedding"].combine_chunks()
    return cells.flatten().to_numpy().reshape(len(part), -1)


def typical_distance(embeddings: Embeddings, patients: Patients, seed: int) -> float:
    """The median distance between two training patients, of a sample drawn by seed."""
    drawn = TYPICAL_DISTANCE.generator(seed).permutation(np.flatnonzero(patients.eligible(TRAINING)))[:TYPICAL_VOLUMES]
    vectors = embeddings.take(drawn).astype(np.float64)
    half = len(vectors) // 2
    distances = np.linalg.norm(vectors[:half] - vectors[half : 2 * half], axis=1)
    return float(np.median(distances)) if half else 0.0


@dataclass(frozen=True)
class NeighbourFinder:
    """Finds the patients that are most like others, each subject once and no copies.

    least_distance: volumes whose embeddings lie as near as this to each other, or nearer, are copies.
    """

    patients: Patients
    embeddings: Embeddings
    search: Search
    least_distance: float

    def find(
        self, references: Sequence[int], split: str, wanted: int, seen: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """Numbers of the volumes of a split nearest to each reference, nearest first, at most `wanted`.

        One volume a subject; no copies of each other, or of those in `seen` (one list a reference, such as the
        reference itself), whose subjects are passed over as well.
        """
        among = self.patients.eligible(split)
        num_among = int(among.sum())
        vectors = self.embeddings.take(np.array(references))
        found: list[list[int]] = [[] for _ in references]
        lacking, k = list(range(len(references))), wanted + SPARE_NEIGHBOURS
        while lacking:
            k = min(k, num_among)
            numbers = self.search(vectors[lacking], k, among).numbers
            everyone = np.unique(np.concatenate([numbers.ravel(), *map(np.asarray, seen)]))
            vector_of = dict(zip(everyone.tolist(), self.embeddings.take(everyone), strict=True))
            for row, one in zip(numbers, lacking, strict=True):
                found[one] = self._first(row.tolist(), wanted, seen[one], vector_of)
            lacking = [one for one in lacking if len(found[one]) < wanted and k < num_among]
            k *= 2
        return found

    def _first(
        self, candidates: Sequence[int], wanted: int, seen: Sequence[int], vector_of: Mapping[int, NDArray[np.float32]]
    ) -> list[int]:
        """The first candidates of subjects of their own that are no copies of those before them, or of those seen."""
        subjects = {int(self.patients.subjects[number]) for number in seen}
        vectors = np.array([vector_of[number] for number in candidates])
        is_copy = _nearest_of(vectors, np.array([vector_of[number] for number in seen])) <= self.least_distance
        kept = np.empty((wanted, vectors.shape[1]), np.float32)
        chosen: list[int] = []
        for vector, number, is_seen in zip(vectors, candidates, is_copy, strict=True):
            if len(chosen) == wanted:
                break
            subject = int(self.patients.subjects[number])
            distances = np.linalg.norm(kept[: len(chosen)] - vector, axis=1)
            if subject in subjects or is_seen or (distances <= self.least_distance).any():
                continue
            kept[len(chosen)] = vector
            subjects.add(subject)
            chosen.append(number)
        return chosen


def _nearest_of(vectors: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """The distance of each vector from the nearest of the others; infinite where there are none."""
    if not len(others):
        return np.full(len(vectors), np.inf)
    slices = (others[start : start + 1024] for start in range(0, len(others), 1024))
    return np.min([cdist(vectors, some).min(1) for some in slices], axis=0)


@dataclass(frozen=True)
class GraphBuilder:
    """Makes graphs of parts of `vector_source` (a batch of Ray Data).

    grown: by the number of a part's first vector the shard that it extends, or None. seed: of the graphs' levels.
    """

    folder: Place
    grown: Mapping[int, Shard | None]
    settings: IndexSettings
    seed: int

    def __call__(self, part: pa.Table) -> pa.Table:
        """The file of the part's graph, and the numbers of the volumes that it is over: first to last - 1."""
        number = part["number"][0].as_py()
        grown = self.grown[number]
        first = number if grown is None else grown.first
        graph = build_graph(self.folder, vectors_of(part), first, self.settings, self.seed, grown)
        row = {"first": [first], "last": [number + len(part)]}
        return pa.table(row | {"graph": pa.array([graph], pa.large_binary())})


def _publish(folder: Place, volumes: Mapping[int, str], row: pa.Table) -> Shard:
    """Write a graph and its record. volumes: what the record says of them, by the first number of each shard."""
    shard = publish_shard(folder, *(row[name][0].as_py() for name in ("first", "last", "graph")))
    record_shard(folder, shard, volumes[shard.first])
    return shard


def _grow(
    folder: Place, embeddings: Embeddings, volumes_of: Callable[[int, int], str], shards: Sequence[Shard],
    settings: IndexSettings, seed: int,
) -> list[Shard]:  # fmt: skip
    """Build the shards that are missing and fill the last one up, in a stream; returns all, in order.

    volumes_of: see `recorded_shards`.
    """
    whole = {shard.first: shard for shard in shards}
    planned = planned_shards(embeddings.num_volumes, shards, settings.volumes_per_shard)
    if planned:
        grown = {first: whole.get(first) for first, _ in planned}
        begin = {first: first + (0 if shard is None else shard.count) for first, shard in grown.items()}
        builder = GraphBuilder(folder, {begin[first]: shard for first, shard in grown.items()}, settings, seed)
        source = vector_source(embeddings, [(begin[first], last) for first, last in planned])
        graphs = read_parts(source).map_batches(builder, batch_size=None, batch_format="pyarrow", **RETRIED)
        shown = StreamProgress("index", "volumes", source.num_rows, source.num_parts)
        volumes = {first: volumes_of(first, last) for first, last in planned}
        whole |= {shard.first: shard for shard in write_parts(graphs, partial(_publish, folder, volumes), shown)}
    made = [whole[first] for first in sorted(whole)]
    drop_shards(folder, made)
    return made


def _search_one(shard: Shard, folder: Place, queries: NDArray[np.float32], k: int, ef: int) -> Neighbours:
    return search_shard(folder, shard, queries, k, ef)


def _measure(
    folder: Place,
    embeddings: Embeddings,
    shards: Sequence[Shard],
    queries: NDArray[np.float32],
    k: int,
    settings: IndexSettings,
) -> tuple[int, float]:
    """The least `ef` of the settings', doubled, that meets the demanded recall at k, and that recall.

    Raises SearchError if no `ef` does.
    """
    truth = exact_search(embeddings.blocks(), queries, k)
    ef = settings.ef
    most = max(shard.count for shard in shards)
    while True:
        found = recall(search_shards(folder, shards, queries, k, ef), truth)
        set_gauge("raygenesis_index_recall", found)
        if found >= settings.min_recall:
            return ef, found
        if ef >= most:
            raise SearchError(
                f"HNSW finds {found:.4f} of the {k} nearest even at ef={ef}, and index.min_recall="
                f"{settings.min_recall:g}: raise index.m, or give index.method=exact"
            )
        say("index", f"recall@{k} {found:.4f} at ef={ef} is less than {settings.min_recall:g}: twice the ef")
        ef = min(2 * ef, most)


def _summarise(manifest: IndexManifest, folder: Place) -> None:
    counts = manifest.counts
    if manifest.method == "exact":
        say("index", f"none needed: exact search among {counts.volumes} volumes is cheaper (recall 1)")
        return
    say(
        "index",
        f"{counts.volumes} volumes in {counts.shards} HNSW shards ({counts.indexed_before} were there), "
        f"recall@{manifest.asked[0]} against exact search {manifest.recall:.4f} at "
        f"ef={manifest.ef}, {size(manifest.bytes)}, {manifest.seconds:.1f} s → {folder}",
    )
