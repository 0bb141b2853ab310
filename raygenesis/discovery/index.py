"""Nearest neighbours among embeddings by L2: exactly, and by shards of HNSW graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hnswlib
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from raygenesis.config import IndexSettings
from raygenesis.errors import RaygenesisError
from raygenesis.workspace import publish

EXACT_CHUNK = 8192


class SearchError(RaygenesisError):
    """A search that cannot be answered."""


@dataclass(frozen=True)
class Neighbours:
    """numbers: int64 [queries, k], rows of the searched embeddings, nearest first; distances: float32 [queries, k]."""

    numbers: NDArray[np.int64]
    distances: NDArray[np.float32]


def exact_search(embeddings: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> Neighbours:
    """The k nearest rows of `embeddings` [n, d] to each of `queries` [q, d]; of equals the lower row first."""
    _check_count(k, len(embeddings))
    _check_finite(embeddings, queries)
    best_numbers = np.empty((len(queries), 0), np.int64)
    best_distances = np.empty((len(queries), 0), np.float64)
    wanted = queries.astype(np.float64)
    for start in range(0, len(embeddings), EXACT_CHUNK):
        chunk = embeddings[start : start + EXACT_CHUNK].astype(np.float64)
        # Sums of squared differences: |a|² + |b|² − 2ab would cancel, and give equal rows unequal distances.
        squares = cdist(wanted, chunk, "sqeuclidean")
        numbers = np.broadcast_to(np.arange(start, start + len(chunk)), squares.shape)
        best_numbers, best_distances = _nearest(
            np.concatenate([best_numbers, numbers], 1), np.concatenate([best_distances, squares], 1), k
        )
    return Neighbours(best_numbers, np.sqrt(best_distances).astype(np.float32))


def build_shard(path: Path, embeddings: NDArray[np.float32], start: int, settings: IndexSettings, seed: int) -> None:
    """Write one HNSW graph over rows numbered from `start`; one thread and a fixed seed, so that it is repeatable."""
    graph = hnswlib.Index("l2", embeddings.shape[1])
    graph.init_index(len(embeddings), settings.m, settings.ef_construction, random_seed=seed)
    graph.add_items(embeddings, np.arange(start, start + len(embeddings)), num_threads=1)
    publish(path, lambda aside: graph.save_index(str(aside)))


def search_shards(paths: Sequence[Path], queries: NDArray[np.float32], k: int, settings: IndexSettings) -> Neighbours:
    """The k nearest rows over all shards: each shard's best, merged exactly."""
    _check_finite(queries)
    numbers, squares = [], []
    for path in paths:
        graph = hnswlib.Index("l2", queries.shape[1])
        graph.load_index(str(path))
        here = min(k, graph.get_current_count())
        graph.set_ef(max(settings.ef, here))
        found, distances = graph.knn_query(queries, here, num_threads=1)
        numbers.append(found.astype(np.int64))
        squares.append(distances.astype(np.float64))
    _check_count(k, sum(found.shape[1] for found in numbers))
    merged, distances = _nearest(np.concatenate(numbers, 1), np.concatenate(squares, 1), k)
    return Neighbours(merged, np.sqrt(distances).astype(np.float32))


def recall(found: Neighbours, truth: Neighbours) -> float:
    """Share of the true neighbours that were found."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found.numbers, truth.numbers, strict=True)]
    return float(np.sum(hits) / truth.numbers.size)


def _nearest(
    numbers: NDArray[np.int64], squares: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    order = np.lexsort((numbers, squares), axis=1)[:, :k]
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(squares, order, 1)


def _check_count(k: int, num_volumes: int) -> None:
    if k > num_volumes:
        raise SearchError(f"{k} neighbours were asked for among {num_volumes} volumes: ask for fewer")


def _check_finite(*vectors: NDArray[np.float32]) -> None:
    if not all(np.isfinite(rows).all() for rows in vectors):
        raise SearchError("embeddings hold NaN or infinity: train the auto-encoder again")
