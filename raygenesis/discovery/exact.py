"""Exact nearest neighbours by L2, in blocks, and when they are cheaper than graphs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from raygenesis.errors import RaygenesisError
from raygenesis.settings import IndexSettings

# Seconds on two threads of one core, measured by tests/benchmarks/discovery.py and scale.py: for an exact search by
# query, vector and number of a vector; for reading a vector's number; for building and searching a graph by number
# and ef.
EXACT_S = 7e-11
READ_S = 1e-8
BUILD_S = 1e-8
SEARCH_S = 1.5e-8

# Whose nearest lie among few vectors of a block; and that are compared with a block at once, which takes memory.
QUERIES_AT_ONCE = 16
QUERIES_COMPARED = 512

# Beyond the error of single-precision sums that all but vanish.
SMALLEST = 1e-37

Real = TypeVar("Real", bound=np.floating)


class SearchError(RaygenesisError):
    """A search that cannot be answered."""


@dataclass(frozen=True)
class Neighbours:
    """numbers: int64 [queries, k], of volumes, nearest first; distances: float32 [queries, k]."""

    numbers: NDArray[np.int64]
    distances: NDArray[np.float32]


def is_exact_cheaper(
    num_vectors: int, num_queries: int, num_indexed: int, size: int, k: int, settings: IndexSettings
) -> bool:
    """Whether one exact search takes less time than building the graphs of the vectors not indexed, and searching."""
    num_shards = -(-num_vectors // settings.volumes_per_shard)
    exact = num_vectors * size * (READ_S + EXACT_S * num_queries)
    build = (num_vectors - num_indexed) * size * settings.ef_construction * BUILD_S
    return exact <= build + num_queries * num_shards * max(settings.ef, k) * size * SEARCH_S


def exact_search(
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], queries: NDArray[np.float32], k: int
) -> Neighbours:
    """The k nearest of the vectors in `blocks` (numbers [m], vectors [m, d]) to each query [q, d].

    Of equally near ones the lower number comes first. Distances are sums of squared differences in double precision,
    of those vectors of a block that may be among the nearest of a few queries. Raises SearchError if there are fewer
    than k, and for NaN and infinity.
    """
    check_finite(queries)
    centre = queries.mean(0, dtype=np.float64).astype(np.float32)  # near the data rounding errs little
    numbers, squares = np.full((len(queries), k), -1), np.full((len(queries), k), np.inf)
    num_vectors = 0
    for block, vectors in blocks:
        check_finite(vectors)
        num_vectors += len(block)
        moved = vectors - centre
        for begin in range(0, len(queries), QUERIES_COMPARED):
            limits = squares[begin : begin + QUERIES_COMPARED, -1]
            may_be_nearest = _within(queries[begin : begin + QUERIES_COMPARED] - centre, moved, limits, k)
            for start in range(0, len(may_be_nearest), QUERIES_AT_ONCE):
                near = may_be_nearest[start : start + QUERIES_AT_ONCE].any(0)
                some = slice(begin + start, begin + min(start + QUERIES_AT_ONCE, len(may_be_nearest)))
                there = cdist(queries[some], vectors[near], "sqeuclidean")
                own = np.broadcast_to(block[near], there.shape)
                both = np.concatenate([numbers[some], own], 1), np.concatenate([squares[some], there], 1)
                numbers[some], squares[some] = nearest(*both, k)
    if k > num_vectors:
        raise SearchError(f"{k} neighbours were asked for among {num_vectors} volumes: ask for fewer")
    return Neighbours(numbers, np.sqrt(squares).astype(np.float32))


def _within(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], limits: NDArray[np.float64], k: int
) -> NDArray[np.bool_]:
    """Whether vectors may be among the k nearest: bool [q, m]; none that is one is lost.

    limits: the squared distance [q] within which k are known already; infinite where there are fewer. Computed by
    |a|² + |b|² - 2ab in single precision, whose rounded products err by less than a share of the norms in any order.
    """
    norms = np.square(queries).sum(1)[:, None] + np.square(vectors).sum(1)
    if not np.isfinite(norms).all():  # what overflows may be anywhere
        return np.ones(norms.shape, bool)
    error = norms * np.float32(4 * (queries.shape[1] + 8) * 2.0**-24) + np.float32(SMALLEST)
    least = norms - 2 * queries @ vectors.T - error
    most = (limits * (1 + 2.0**-20)).astype(np.float32)
    if np.isinf(limits).any() and len(vectors) >= k:
        most = np.minimum(most, np.partition(least + 2 * error, k - 1, axis=1)[:, k - 1])
    return least <= most[:, None]


def recall(found: Neighbours, truth: Neighbours) -> float:
    """Share of the true neighbours that were found."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found.numbers, truth.numbers, strict=True)]
    return float(np.sum(hits) / truth.numbers.size)


def nearest(numbers: NDArray[np.int64], distances: NDArray[Real], k: int) -> tuple[NDArray[np.int64], NDArray[Real]]:
    """The k columns of least distance of each row, the lower number first among equals; both [q, k]."""
    order = np.lexsort((numbers, distances), axis=1)[:, :k]
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(distances, order, 1)


def check_finite(*vectors: NDArray[np.float32]) -> None:
    """Raise SearchError for NaN and infinity, which graphs take in silently."""
    if not all(np.isfinite(rows).all() for rows in vectors):
        raise SearchError("embeddings hold NaN or infinity: train the auto-encoder again")
