"""The search for the neighbours of one part of the scans: among all, or among the new ones beside what is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raygenesis.discovery.embeddings import BLOCK_ROWS, Embeddings
from raygenesis.discovery.exact import Neighbours, exact_search, is_exact_cheaper
from raygenesis.discovery.index import merge, search_shard
from raygenesis.discovery.neighbour_table import (
    merged,
    neighbours_of,
    part_path,
    read_part,
    stacked,
    table_of,
    without_self,
)
from raygenesis.settings import IndexSettings
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import Shard


@dataclass(frozen=True)
class RowSearch:
    """Finds the k nearest of the scans of a part.

    folder: of the table, whose parts may know the nearest among fewer scans. index: folder of the shards. ids: of all
    scans by number. is_there: whether each is in the archive still, bool [n]; those that are not are neither searched
    for nor found. ef: of a search in graphs; None where search is exact.
    """

    folder: Place
    index: Place
    embeddings: Embeddings
    ids: pa.StringArray
    is_there: NDArray[np.bool_]
    shards: tuple[Shard, ...]
    ef: int | None
    settings: IndexSettings

    def rows(self, first: int, vectors: NDArray[np.float32], searched: int) -> pa.Table:
        """Rows of the scans numbered from `first` on, with vectors [n, d].

        searched: among how many scans, the first so many, the part that is there was searched; 0 where there is none.
        """
        k = self.settings.num_neighbours
        num_known = min(max(searched - first, 0), len(vectors))
        found = []
        if num_known:
            known = neighbours_of(read_part(part_path(self.folder, first)), self.ids, k)
            new = self._among_new(vectors[:num_known], searched)
            distances = np.where(self.is_there[first : first + num_known, None], new.distances, np.float32(np.inf))
            found.append(merged([known, Neighbours(new.numbers, distances)], k))
        if num_known < len(vectors):
            found.append(self._rows_of(np.arange(first + num_known, first + len(vectors)), vectors[num_known:]))
        return table_of(stacked(found), first, self.ids)

    def _rows_of(self, own: NDArray[np.int64], vectors: NDArray[np.float32]) -> Neighbours:
        """The rows of scans with these numbers, searched for among all; none of those that are gone."""
        k, is_there = self.settings.num_neighbours, self.is_there[own]
        numbers, distances = np.full((len(own), k), -1, np.int64), np.full((len(own), k), np.inf, np.float32)
        if is_there.any():
            some = without_self(self._among_all(vectors[is_there]), own[is_there], k)
            numbers[is_there], distances[is_there] = some.numbers, some.distances
        return Neighbours(numbers, distances)

    def _among_all(self, queries: NDArray[np.float32]) -> Neighbours:
        """The k + 1 nearest of all scans: one of them is the scan itself."""
        k = min(self.settings.num_neighbours + 1, int(self.is_there.sum()))
        if self.ef is None:
            return exact_search(self.embeddings.blocks(self.is_there), queries, k)
        return self._in_graphs(queries, self.shards, k)

    def _among_new(self, queries: NDArray[np.float32], first: int) -> Neighbours:
        """Of the scans numbered from `first` on, those that may be among the k nearest of all."""
        num_new, k = int(self.is_there[first:].sum()), self.settings.num_neighbours
        if not num_new:
            return Neighbours(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
        if self.ef is None or is_exact_cheaper(num_new, len(queries), num_new, queries.shape[1], k, self.settings):
            return exact_search(self._blocks_from(first), queries, min(k, num_new))
        # One more than k: known scans are in these graphs too, and one of them is the scan itself.
        found = self._in_graphs(queries, [shard for shard in self.shards if shard.first + shard.count > first], k + 1)
        # Known ones in the same graphs are passed over: of the nearest of all, these graphs have every new one.
        return Neighbours(found.numbers, np.where(found.numbers < first, np.float32(np.inf), found.distances))

    def _blocks_from(self, first: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Numbers and vectors of what is there from `first` on; parts of the embeddings before are not read."""
        for start in range(first, len(self.ids), BLOCK_ROWS):
            numbers = start + np.flatnonzero(self.is_there[start : start + BLOCK_ROWS])
            yield numbers, self.embeddings.take(numbers)

    def _in_graphs(self, queries: NDArray[np.float32], shards: list[Shard] | tuple[Shard, ...], k: int) -> Neighbours:
        """The k nearest of some shards, one of which is in memory at a time; fewer where fewer are reached."""
        assert self.ef is not None
        gone = np.flatnonzero(~self.is_there).tolist()
        found = [search_shard(self.index, shard, queries, k, self.ef, gone) for shard in shards]
        return merge(found, min(k, sum(one.numbers.shape[1] for one in found)))
