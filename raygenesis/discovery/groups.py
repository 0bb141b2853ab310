"""Groups: dense regions among the scans, such as a body part, a view or a protocol, with gaps between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from raygenesis.discovery.exact import Neighbours
from raygenesis.discovery.outliers import RANK

NO_GROUP = -1

# Two scans are linked up to so many times the geometric mean of their radii.
MOST_GAP = 1.5
LEAST_SIZE = RANK
MOST_RADII = 2.0  # from a few scans to one of the group that they join

# From which scans, to which, and how far.
Edges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def groups_of(found: Neighbours, radius: NDArray[np.float64], is_left_out: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The group of each scan, numbered by size, largest first, equals by their first scan; NO_GROUP of those left out
    and of a few that are far from all groups.

    found: rows padded by infinity; radius: of each scan (`radii`). Scans are linked that are among each other's
    neighbours where their mutual reachability distance (Campello et al. 2013) is usual around both, in units of their
    own radii (Zelnik-Manor and Perona 2004): so groups may lie as densely or as loosely as they do, and a few scans
    between two do not link them. A linked piece of fewer than LEAST_SIZE scans joins the group nearest to it, unless
    that is far.
    """
    rows, columns, distances = _edges(found, is_left_out)
    own, others = radius[rows], radius[columns]
    is_usual = np.maximum(distances, np.maximum(own, others)) <= MOST_GAP * np.sqrt(own * others)
    near = sparse.csr_array((np.ones(is_usual.sum(), np.int8), (rows[is_usual], columns[is_usual])), (len(radius),) * 2)
    pieces = connected_components(near.multiply(near.T), directed=False)[1].astype(np.int64)
    pieces[is_left_out] = NO_GROUP
    sizes = np.bincount(pieces[~is_left_out], minlength=len(radius))
    is_near = distances <= MOST_RADII * np.minimum(own, others)
    edges = rows[is_near], columns[is_near], distances[is_near]
    return _numbered(_joined(pieces, sizes >= min(LEAST_SIZE, sizes.max(initial=0)), edges))


def _edges(found: Neighbours, is_left_out: NDArray[np.bool_]) -> Edges:
    """From each scan to its neighbours, without those left out."""
    rows = np.repeat(np.arange(len(is_left_out)), found.numbers.shape[1])
    columns, distances = found.numbers.ravel(), found.distances.ravel()
    kept = np.isfinite(distances) & ~is_left_out[rows] & ~is_left_out[columns]
    return rows[kept], columns[kept], distances[kept].astype(np.float64)


def _joined(pieces: NDArray[np.int64], is_large: NDArray[np.bool_], edges: Edges) -> NDArray[np.int64]:
    """Pieces of which the small ones have joined the large ones that their shortest edges lead to, in steps."""
    rows, columns, distances = (
        np.concatenate(pair) for pair in zip(edges, (edges[1], edges[0], edges[2]), strict=True)
    )
    order = np.argsort(distances, kind="stable")
    rows, columns = rows[order], columns[order]
    is_settled = is_large[pieces] & (pieces >= 0)
    pieces = pieces.copy()
    while True:
        leads = ~is_settled[rows] & is_settled[columns] & (pieces[rows] >= 0)
        small, first = np.unique(pieces[rows[leads]], return_index=True)
        if not len(small):
            pieces[~is_settled] = NO_GROUP
            return pieces
        joins = dict(zip(small.tolist(), pieces[columns[leads]][first].tolist(), strict=True))
        is_moved = np.isin(pieces, small) & ~is_settled
        pieces[is_moved] = [joins[piece] for piece in pieces[is_moved].tolist()]
        is_settled |= is_moved


def _numbered(pieces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pieces numbered by size, largest first; of equal ones that of the first scan comes first."""
    own, first, counts = np.unique(pieces[pieces >= 0], return_index=True, return_counts=True)
    number_of = np.full(pieces.max(initial=0) + 2, NO_GROUP)
    number_of[own[np.lexsort((first, -counts))]] = np.arange(len(own))
    return number_of[pieces]
