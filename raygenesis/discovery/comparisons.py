"""How alike pairs of scans are: a table that grows with the archive, so that no pair is compared twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.cluster.streams import RETRIED, PartSource, SourcePart, StreamProgress, read_parts, write_parts
from raygenesis.discovery.comparer import Comparer
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.files import Place, make_folder, parquet_dataset, write_table

PAIRS_PER_PART = 512

# Pairs of volumes by their keys (`keys_of`).
PAIRS = pa.schema([("one", pa.string()), ("other", pa.string()), ("part", pa.int64())])
COMPARISONS = pa.schema(
    [
        ("one", pa.string()),
        ("other", pa.string()),
        ("rough", pa.float64()),
        ("fine", pa.float64()),  # null where they are hardly alike on the rough grid
    ]
)


@dataclass(frozen=True)
class Comparisons:
    """What is known of pairs of scans, and compares more.

    folder: of the table's parts. volumes, catalog: of the archive. ids, keys: by number, of the volumes and of what
    they were when they were embedded (`keys_of`).
    """

    folder: Place
    volumes: Place
    catalog: Place
    ids: pa.StringArray
    keys: pa.StringArray

    def of(self, pairs: NDArray[np.int64], least: float, stage: str) -> NDArray[np.float64]:
        """The likeness of pairs of numbers [p, 2], in a stream that `stage` names.

        On the rough grid where that is less than `least`, else on the fine one; NaN where a scan is damaged. Raises
        WorkspaceError if a part of the table is damaged.
        """
        pairs = self._directed(pairs)
        rough, fine = self._known(pairs)
        lacking = np.isnan(np.where(rough < least, rough, fine))
        if lacking.any():
            self._compare(np.unique(pairs[lacking], axis=0), least, stage)
            rough, fine = self._known(pairs)
        return np.where(rough < least, rough, fine)

    def _directed(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Each pair by the order of its ids, whatever numbers they have: a comparison is not quite symmetric."""
        rank = np.empty(len(self.ids), np.int64)
        rank[pc.array_sort_indices(self.ids).to_numpy()] = np.arange(len(self.ids))
        return np.where((rank[pairs[:, 0]] > rank[pairs[:, 1]])[:, None], pairs[:, ::-1], pairs)

    def _parts(self) -> list[Place]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _known(self, pairs: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The rough and the fine likeness of pairs; NaN where it is not known."""
        rough, fine = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
        paths = self._parts()
        if not paths:
            return rough, fine
        try:
            table = parquet_dataset(paths, COMPARISONS).to_table()
        except (pa.ArrowInvalid, OSError) as error:
            raise WorkspaceError(
                f"a part of {self.folder} is damaged ({str(error).splitlines()[0]}): remove that folder, then run "
                "`raygenesis neighbours`"
            ) from None
        one, other = (pc.index_in(table[name], value_set=self.keys).combine_chunks() for name in ("one", "other"))
        is_known = pc.and_(pc.is_valid(one), pc.is_valid(other))
        keys = self._keys(*(column.filter(is_known).to_numpy() for column in (one, other)))
        values = [table[name].filter(is_known).to_numpy() for name in ("rough", "fine")]
        # Of a pair that was compared once on the rough grid and once on both, the latter comes first.
        order = np.lexsort((np.isnan(values[1]), keys))
        keys = keys[order]
        wanted = self._keys(pairs[:, 0], pairs[:, 1])
        at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        is_there = keys[at] == wanted if len(keys) else np.zeros(len(wanted), bool)
        rough[is_there], fine[is_there] = (value[order][at[is_there]] for value in values)
        return rough, fine

    def _keys(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
        return one.astype(np.int64) * len(self.ids) + other

    def _compare(self, pairs: NDArray[np.int64], least: float, stage: str) -> None:
        """Compare pairs, and add what is found to the table."""
        make_folder(self.folder)
        there = self._parts()
        first = int(there[-1].name.removeprefix("part-").removesuffix(".parquet")) + 1 if there else 0
        parts = []
        for number, start in enumerate(range(0, len(pairs), PAIRS_PER_PART), first):
            some = pairs[start : start + PAIRS_PER_PART]
            names = [self.keys.take(pa.array(column)) for column in some.T]
            table = pa.table([*names, pa.array(np.full(len(some), number))], schema=PAIRS)
            parts.append(SourcePart(partial(_itself, table), len(table), table.nbytes))
        source, comparer = PartSource(parts, PAIRS), Comparer(self.volumes, self.catalog, least)
        compared = read_parts(source).map_batches(comparer, batch_size=None, batch_format="pyarrow", **RETRIED)
        shown = StreamProgress(stage, "pairs", source.num_rows, source.num_parts)
        write_parts(compared, partial(_publish, self.folder), shown)


def _itself(table: pa.Table) -> pa.Table:
    return table


def _publish(folder: Place, compared: pa.Table) -> None:
    """Write a part, without pairs of damaged scans: those are looked at again."""
    known = compared.filter(pc.is_valid(compared["rough"]))
    write_table(folder / f"part-{compared['part'][0].as_py():09d}.parquet", known.select(COMPARISONS.names))
