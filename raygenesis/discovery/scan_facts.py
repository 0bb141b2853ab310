"""What neighbours say of each scan: whose copy it is, whether it stands alone, which group it is of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_columns
from raygenesis.discovery.comparisons import Comparisons
from raygenesis.discovery.duplicates import COPY_LIKENESS, ROUGH_LIKENESS, candidates, first_copies
from raygenesis.discovery.exact import Neighbours
from raygenesis.discovery.groups import groups_of
from raygenesis.discovery.neighbour_table import among
from raygenesis.discovery.outliers import NUM_COMPARED, NUM_USUAL, SPARSE, outliers, radii, sparsity
from raygenesis.discovery.scan_table import SCANS
from raygenesis.settings.streams import USUAL_SCANS
from raygenesis.workspace.files import Place


def in_archive(catalog: Place, ids: pa.StringArray) -> NDArray[np.bool_]:
    """Whether each volume is in the archive still: embeddings of those that left it stay."""
    known = read_columns(catalog, ["volume_id"])["volume_id"]
    there: NDArray[np.bool_] = pc.is_in(ids, value_set=known).to_numpy(zero_copy_only=False)
    return there


def scan_facts(comparisons: Comparisons, is_there: NDArray[np.bool_], found: Neighbours, seed: int) -> pa.Table:
    """The table (schema SCANS) of the scans that are in the archive, bool [n], in order of their number.

    found: the neighbours of each, padded by infinity.
    """
    ids, pairs = comparisons.ids, candidates(found)
    alike = comparisons.of(pairs, ROUGH_LIKENESS, "duplicates")
    is_copy = alike >= COPY_LIKENESS
    first = first_copies(pairs[is_copy], len(ids))
    near = among(found, is_there & (first == np.arange(len(ids))))
    radius = radii(near)
    sparse = sparsity(near, radius)
    is_outlier = np.zeros(len(ids), bool)
    is_outlier[_outliers(comparisons, near, sparse, seed)] = True
    group = groups_of(near, radius, is_outlier | ~is_there | (first != np.arange(len(ids))))
    best = _likeness_to_first(pairs[is_copy], alike[is_copy], first)
    nearest = np.where(np.isfinite(found.distances[:, 0]), found.distances[:, 0], np.nan)
    columns = {
        "volume_id": ids,
        "nearest_distance": pa.array(nearest, pa.float32(), from_pandas=True),
        "duplicate_of": pc.if_else(pa.array(first == np.arange(len(ids))), "", ids.take(pa.array(first))),
        "likeness": pa.array(best, pa.float32(), from_pandas=True),
        "sparsity": sparse[first], "is_outlier": is_outlier[first], "group": group[first],
    }  # fmt: skip
    return pa.table(columns).cast(SCANS).filter(pa.array(is_there))


def _outliers(comparisons: Comparisons, near: Neighbours, sparse: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Numbers of the outliers among the scans that have neighbours."""
    has_some = near.numbers[:, 0] >= 0
    suspects = np.flatnonzero(has_some & (sparse > SPARSE))
    usual = USUAL_SCANS.generator(seed).permutation(np.flatnonzero(has_some & (sparse <= SPARSE)))[:NUM_USUAL]
    if not len(suspects):
        return suspects
    scans = np.concatenate([suspects, usual])
    others = near.numbers[scans, :NUM_COMPARED]
    own = np.broadcast_to(scans[:, None], others.shape)
    alike = np.full(others.shape, np.nan)
    alike[others >= 0] = comparisons.of(np.stack([own[others >= 0], others[others >= 0]], 1), -np.inf, "outliers")
    return outliers(suspects, alike[: len(suspects)], alike[len(suspects) :])


def _likeness_to_first(
    pairs: NDArray[np.int64], alike: NDArray[np.float64], first: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each copy the greatest likeness to a scan that is the same; NaN of the others."""
    best = np.full(len(first), np.nan)
    for column in (0, 1):
        np.fmax.at(best, pairs[:, column], alike)
    best[first == np.arange(len(first))] = np.nan
    return best
