"""Exact nearest neighbours by L2, in blocks, and when they are cheaper than graphs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raygenesis.errors import RaygenesisError
from raygenesis.settings import IndexSettings

# Seconds on two threads of one core, measured by tests/benchmarks/discovery.py and scale.py: for an exact search by
# query, vector and number of a vector; for reading a vector's number; for building and searching a graph by number
# and ef.
EXACT_S = 7e-11
READ_S = 1e-8
BUILD_S = 1e-8
SEARCH_S = 1.5e-8


# Pairs whose distance is worked out at a time.
CANDIDATES = 4096

# Beyond the error of single-precision sums that all but vanish.
SMALLEST = 1e-37


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

    Of equally near ones the lower number comes first. Single precision only says which vectors may be among the
    nearest, with a bound on its error; their distances are sums of squared differences in double precision.
    """
    check_finite(queries)
    centre = queries.mean(0, dtype=np.float64).astype(np.float32)  # near the data the error is small
    around, wide = torch.from_numpy(queries - centre), queries.astype(np.float64)
    numbers, squares = np.full((len(queries), k), -1), np.full((len(queries), k), np.inf)
    seen = 0
    for block, vectors in blocks:
        check_finite(vectors)
        seen += len(block)
        rows, columns = _may_be_nearest(around, torch.from_numpy(vectors - centre), squares[:, -1], k)
        for start in range(0, len(rows), CANDIDATES):
            row, column = rows[start : start + CANDIDATES], columns[start : start + CANDIDATES]
            near = np.square(wide[row] - vectors[column]).sum(1)
            for query, first, last in _runs(row):
                both = np.concatenate([squares[query], near[first:last]])
                named = np.concatenate([numbers[query], block[column[first:last]]])
                order = np.lexsort((named, both))[:k]
                squares[query], numbers[query] = both[order], named[order]
    if k > seen:
        raise SearchError(f"{k} neighbours were asked for among {seen} volumes: ask for fewer")
    return Neighbours(numbers, np.sqrt(squares).astype(np.float32))


def _may_be_nearest(
    queries: torch.Tensor, vectors: torch.Tensor, limit: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which vectors may be among the k nearest of a query, where k at `limit` or nearer are known: pairs, by query."""
    own, theirs = queries.square().sum(1), vectors.square().sum(1)
    if not len(vectors) or not torch.isfinite(own.max() + theirs.max()):
        everything = np.indices((len(queries), len(vectors))).reshape(2, -1)  # what overflows may be anywhere
        return everything[0], everything[1]
    norms = own[:, None] + theirs[None]
    # The error of a sum of d rounded products, whatever their order, is within this share of the two norms.
    share = 4 * (queries.shape[1] + 8) * 2.0**-24
    least = torch.addmm(norms * (1 - share) - SMALLEST, queries, vectors.T, alpha=-2)
    most = torch.from_numpy(limit).float() * (1 + 2.0**-20)
    if limit.max() == np.inf and len(vectors) >= k:
        most = torch.minimum(most, (least + 2 * (share * norms + SMALLEST)).kthvalue(k, dim=1).values)
    rows, columns = torch.nonzero(least <= most[:, None], as_tuple=True)
    return rows.numpy(), columns.numpy()


def _runs(rows: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Each value of a sorted array, where it begins and where it ends."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    ends = [*starts[1:], len(rows)]
    return [(int(rows[start]), int(start), int(end)) for start, end in zip(starts, ends, strict=True)]


def recall(found: Neighbours, truth: Neighbours) -> float:
    """Share of the true neighbours that were found."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found.numbers, truth.numbers, strict=True)]
    return float(np.sum(hits) / truth.numbers.size)


def nearest(
    numbers: NDArray[np.int64], squares: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k columns of least square of each row, the lower number first among equals."""
    order = np.lexsort((numbers, squares), axis=1)[:, :k]
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(squares, order, 1)


def check_finite(*vectors: NDArray[np.float32]) -> None:
    """Raise SearchError for NaN and infinity, which graphs take in silently."""
    if not all(np.isfinite(rows).all() for rows in vectors):
        raise SearchError("embeddings hold NaN or infinity: train the auto-encoder again")
