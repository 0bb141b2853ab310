"""Shards of HNSW graphs: built in parallel, merged exactly, grown without rebuilding."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import hnswlib
import numpy as np
import xxhash
from numpy.typing import NDArray

from raygenesis.discovery.exact import Neighbours, SearchError, check_finite, nearest
from raygenesis.settings import IndexSettings
from raygenesis.workspace.files import Place, on_disk, publish, write_json, xxh3_of
from raygenesis.workspace.manifest import Shard
from raygenesis.workspace.records import read_record


@dataclass(frozen=True)
class ShardRecord:
    """What is beside a shard. volumes: digest of the encoder and of the ids of its volumes."""

    shard: Shard
    volumes: str


def planned_shards(num_volumes: int, shards: Sequence[Shard], volumes_per_shard: int) -> list[tuple[int, int]]:
    """First and last number of each shard to write for volumes that `shards` lack; one with room is filled up."""
    counts = {shard.first: shard.count for shard in shards}
    starts = range(0, num_volumes, volumes_per_shard)
    spans = [(first, min(first + volumes_per_shard, num_volumes)) for first in starts]
    return [(first, last) for first, last in spans if counts.get(first, 0) < last - first]


def build_graph(
    folder: Place, vectors: NDArray[np.float32], first: int, settings: IndexSettings, seed: int, grown: Shard | None
) -> bytes:
    """The content of one graph's file: over volumes numbered from `first`, or `grown` with those after its own.

    folder: that `grown` is in. vectors: float32 [n, d], of the new volumes. One thread and a fixed seed: the same
    history gives the same bytes. Raises SearchError if the file of `grown` is damaged, and for NaN and infinity.
    """
    check_finite(vectors)
    graph = hnswlib.Index("l2", vectors.shape[1])
    there = 0 if grown is None else grown.count
    last = first + there + len(vectors)
    if grown is None:
        graph.init_index(len(vectors), settings.m, settings.ef_construction, random_seed=seed)
    else:
        _load(graph, folder, grown, last - first)
    graph.add_items(vectors, np.arange(first + there, last), num_threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "graph.hnsw")
        graph.save_index(str(path))
        return path.read_bytes()


def publish_shard(folder: Place, first: int, last: int, graph: bytes) -> Shard:
    """Write the file of a graph over the volumes numbered first to last - 1."""
    path = folder / f"shard-{first:09d}-{last:09d}.hnsw"
    publish(path, lambda aside: aside.write_bytes(graph))
    return Shard(path.name, first, last - first, xxhash.xxh3_64_hexdigest(graph))


def record_shard(folder: Place, shard: Shard, volumes: str) -> None:
    """Write what a shard holds beside it, for a job that goes on after this one was cut off."""
    write_json(_record_path(folder, shard), asdict(ShardRecord(shard, volumes)))


def recorded_shards(folder: Place, volumes_of: Callable[[int, int], str]) -> list[Shard]:
    """The shards with records that hold what they are to hold, in order; of those that were grown the largest.

    volumes_of: what is recorded of a shard over the volumes from a first number to a last - 1. Raises WorkspaceError if
    a record is damaged.
    """
    paths: list[Place] = sorted(folder.glob("shard-*.json"))
    records = [read_record(path, ShardRecord) for path in paths]
    by_first: dict[int, Shard] = {}
    for record in records:
        if record is not None and (folder / record.shard.name).is_file():
            first, last = record.shard.first, record.shard.first + record.shard.count
            if record.volumes == volumes_of(first, last):
                by_first[first] = record.shard
    return [by_first[first] for first in sorted(by_first)]


def drop_shards(folder: Place, kept: Sequence[Shard]) -> None:
    """Remove all other shards and their records: those that were grown, and those of other embeddings."""
    names = {name for shard in kept for name in (shard.name, _record_path(folder, shard).name)}
    for path in folder.glob("shard-*"):
        if path.name not in names:
            path.unlink()


def _record_path(folder: Place, shard: Shard) -> Place:
    return folder / f"{shard.name.removesuffix('.hnsw')}.json"


def search_shard(
    folder: Place, shard: Shard, queries: NDArray[np.float32], k: int, ef: int, gone: Sequence[int] = ()
) -> Neighbours:
    """The k nearest volumes of one shard, or all where it holds fewer; none of `gone`, numbers of volumes.

    A query from which fewer are reached, however wide the search, has the number -1 at infinity in place of the others.
    Raises SearchError if its file is damaged.
    """
    check_finite(queries)
    graph = hnswlib.Index("l2", queries.shape[1])
    _load(graph, folder, shard, shard.count)
    left_out = [number for number in gone if shard.first <= number < shard.first + shard.count]
    for number in left_out:
        graph.mark_deleted(number)
    here = min(k, shard.count - len(left_out))
    if not here:
        return Neighbours(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
    graph.set_ef(max(ef, here))
    try:
        numbers, squares = graph.knn_query(queries, here, num_threads=1)
    except RuntimeError:  # some query reaches fewer
        rows = [_reached(graph, query, here, max(ef, here)) for query in queries]
        return Neighbours(np.stack([row.numbers for row in rows]), np.stack([row.distances for row in rows]))
    return Neighbours(numbers.astype(np.int64), np.sqrt(squares))


def _reached(graph: hnswlib.Index, query: NDArray[np.float32], k: int, ef: int) -> Neighbours:
    """The k nearest to one query [d], shapes [k]: `ef` is doubled, then fewer are asked for, and the rest is padded."""
    most, here = graph.get_current_count(), k
    while here:
        graph.set_ef(ef)
        try:
            numbers, squares = graph.knn_query(query, here, num_threads=1)
        except RuntimeError:
            ef, here = (min(2 * ef, most), here) if ef < most else (ef, here * 9 // 10)
            continue
        lacking = (0, k - here)
        padded = np.pad(np.sqrt(squares[0]), lacking, constant_values=np.inf)
        return Neighbours(np.pad(numbers[0].astype(np.int64), lacking, constant_values=-1), padded)
    return Neighbours(np.full(k, -1), np.full(k, np.inf, np.float32))


def merge(found: Sequence[Neighbours], k: int) -> Neighbours:
    """The k nearest of several shards' nearest."""
    numbers = np.concatenate([one.numbers for one in found], 1)
    distances = np.concatenate([one.distances for one in found], 1)
    if k > numbers.shape[1]:
        raise SearchError(f"{k} neighbours were asked for among {numbers.shape[1]} volumes: ask for fewer")
    return Neighbours(*nearest(numbers, distances, k))


def _load(graph: hnswlib.Index, folder: Place, shard: Shard, capacity: int) -> None:
    path, fault = folder / shard.name, ""
    try:
        with on_disk(path) as local:
            if xxh3_of(local) == shard.xxh3:
                graph.load_index(str(local), max_elements=capacity)
            else:
                fault = "damaged"
    except FileNotFoundError:
        fault = "missing"
    if fault:
        raise SearchError(f"{path} is {fault}: remove {folder} and run `raygenesis neighbours` to build it again")
