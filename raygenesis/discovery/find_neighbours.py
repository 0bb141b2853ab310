"""Neighbours: for every scan of the archive its nearest scans, in a stream, and what follows for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.archive.work import archive_size
from raygenesis.cluster.progress import Stopwatch, say
from raygenesis.cluster.streams import RETRIED, StreamProgress, read_parts, write_parts
from raygenesis.cluster.work import Announce, unannounced
from raygenesis.discovery.comparisons import Comparisons
from raygenesis.discovery.embeddings import Embeddings, present_embeddings
from raygenesis.discovery.exact import Neighbours, exact_search, recall
from raygenesis.discovery.neighbour_table import (
    NEIGHBOURS_SCHEMA,
    SCANS_PER_PART,
    are_readable,
    digest_of_ids,
    num_searched,
    part_path,
    part_paths,
    read_neighbours,
    stamped,
    without_self,
)
from raygenesis.discovery.neighbours import NUM_QUERIES, build_index, encoder_of, vector_source, vectors_of
from raygenesis.discovery.row_search import RowSearch
from raygenesis.discovery.scan_facts import in_archive, scan_facts
from raygenesis.discovery.scan_table import SCANS_FILE
from raygenesis.discovery.work import neighbours_work
from raygenesis.errors import WorkspaceError
from raygenesis.settings import IndexSettings, Settings
from raygenesis.settings.streams import RECALL_QUERIES
from raygenesis.text.amounts import several, size
from raygenesis.workspace.artifacts import ARCHIVE, NEIGHBOURS
from raygenesis.workspace.files import Place, write_table
from raygenesis.workspace.manifest import NeighboursCounts, NeighboursManifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

MOST_NAMED = 8  # groups, in a line


def find_neighbours(workspace: Workspace, settings: Settings, announce: Announce = unannounced) -> NeighboursManifest:
    """Write each scan's nearest scans and what follows from them; returns the manifest.

    What is there is kept: parts whose scans were searched for among all, and of others what is known already.
    """
    embedded = present_embeddings(workspace)
    chosen = settings.model_dump(mode="json", include={"index", "seed"})
    stage = Stage(NEIGHBOURS, workspace.neighbours, chosen, {"encoder": encoder_of(embedded)})
    earlier = stage.finished()
    archive = ARCHIVE.read(workspace.archive)
    present = embedded.fingerprint, "" if archive is None else archive.fingerprint
    is_made = earlier is not None and (earlier.embeddings, earlier.archive or present[1]) == present
    if not is_made and archive is not None:
        announce([neighbours_work(archive_size(archive), settings.index, settings.autoencoder.latent_size)])
    watch = Stopwatch()
    # Though neighbours are there, the index may have been removed, or another K be asked of it.
    index = build_index(workspace, settings.index, settings.discovery, settings.seed)
    embeddings = Embeddings(workspace.embeddings)
    if earlier is not None and is_made and are_readable(workspace.neighbours, embeddings.num_volumes):
        say("neighbours", f"nothing to do: they are in {workspace.neighbours}")
        return earlier
    ids, keys = embeddings.ids(), embeddings.keys()
    is_there = in_archive(workspace.catalog, ids)
    if not is_there.any():
        raise WorkspaceError(f"no scan in {workspace.archive} has an embedding: run `raygenesis embed` first")
    with stage.claimed():
        folder = workspace.neighbours
        search = RowSearch(folder, workspace.index, embeddings, ids, is_there, index.shards, index.ef, settings.index)
        searched = num_searched(folder, ids, keys, is_there)
        num_new = _write_rows(search, keys, searched)
        found, share = _measured(search, settings.seed)
        if any(searched.values()) and _with_itself(share, settings.index) < settings.index.min_recall:
            say("neighbours", f"recall {share:.4f}, of rows that have grown, is too low: all scans are searched again")
            _write_rows(search, keys, dict.fromkeys(searched, 0))
            found, share = _measured(search, settings.seed)
        comparisons = Comparisons(folder / "compared", workspace.volumes, workspace.catalog, ids, keys)
        scans = scan_facts(comparisons, is_there, found, settings.seed)
        write_table(folder / SCANS_FILE, scans)
        sizes = np.bincount(scans["group"].filter(pc.greater_equal(scans["group"], 0)).to_numpy())
        manifest = NeighboursManifest(
            counts=_counts(scans, num_new, found), seconds=watch.seconds, embeddings=present[0], archive=present[1],
            method=index.method, recall=share, groups=tuple(sizes.tolist()),
        )  # fmt: skip
        manifest = stage.finish(manifest, content=present)
    counts = manifest.counts
    say(
        "neighbours",
        f"{counts.neighbours} neighbours of {counts.volumes} scans ({counts.added} new), {manifest.method} search, "
        f"recall {share:.4f}; {_in_words(manifest)}; {size(manifest.bytes)}, {manifest.seconds:.1f} s → {folder}",
    )
    return manifest


def _counts(scans: pa.Table, num_new: int, found: Neighbours) -> NeighboursCounts:
    return NeighboursCounts(
        volumes=len(scans), added=num_new, neighbours=int((found.numbers >= 0).sum()),
        duplicates=pc.sum(pc.not_equal(scans["duplicate_of"], "")).as_py(),
        outliers=pc.sum(scans["is_outlier"]).as_py(), groups=pc.max(scans["group"]).as_py() + 1,
    )  # fmt: skip


def _in_words(manifest: NeighboursManifest) -> str:
    counts = manifest.counts
    sizes = ", ".join(f"{number:,}" for number in manifest.groups[:MOST_NAMED]) + ", …" * (counts.groups > MOST_NAMED)
    return f"{several(counts.groups, 'groups')} ({sizes}), {counts.duplicates} duplicates, {counts.outliers} outliers"


@dataclass(frozen=True)
class PartSearch:
    """Makes rows of parts of `vector_source` (a batch of Ray Data), and names each by its first number.

    searched: by the first number of a part, among how many scans it was searched for before.
    """

    search: RowSearch
    searched: Mapping[int, int]

    def __call__(self, part: pa.Table) -> pa.Table:
        first = part["number"][0].as_py()
        rows = self.search.rows(first, vectors_of(part), self.searched[first])
        return rows.append_column("number", part["number"])


def _write_rows(search: RowSearch, keys: pa.StringArray, searched: Mapping[int, int]) -> int:
    """Write the parts that are not up to date, see `PartSearch`; returns the number of scans that had no row.

    keys: what identifies the volumes by number, as they were embedded.
    """
    ids, folder = search.ids, search.folder
    spans = [(first, min(first + SCANS_PER_PART, len(ids))) for first, number in searched.items() if number < len(ids)]
    if spans:
        source = vector_source(search.embeddings, spans)
        rows = read_parts(source).map_batches(
            PartSearch(search, searched), batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **RETRIED
        )
        shown = StreamProgress("neighbours", "scans", source.num_rows, source.num_parts)
        write_parts(rows, partial(_publish, folder, len(ids), digest_of_ids(keys, search.is_there)), shown)
    wanted = {part_path(folder, first).name for first in searched}
    for path in part_paths(folder):
        if path.name not in wanted:
            path.unlink()  # of other embeddings
    return sum(max(end - max(first, searched[first]), 0) for first, end in spans)


def _publish(folder: Place, num_scans: int, digest: str, rows: pa.Table) -> None:
    first = rows["number"][0].as_py()
    table = pa.table(rows.drop_columns(["number"]).columns, schema=NEIGHBOURS_SCHEMA)
    write_table(part_path(folder, first), stamped(table, num_scans, digest))


def _with_itself(share: float, settings: IndexSettings) -> float:
    """A recall as that of an index is measured: there each scan is the nearest to itself."""
    return (share * settings.num_neighbours + 1) / (settings.num_neighbours + 1)


def _measured(search: RowSearch, seed: int) -> tuple[Neighbours, float]:
    """All rows as they are written, and the share of the true neighbours that they hold (`_recall`)."""
    found = read_neighbours(search.folder, search.ids, search.settings.num_neighbours)
    return found, _recall(found, search.embeddings, search.is_there, seed)


def _recall(found: Neighbours, embeddings: Embeddings, is_there: NDArray[np.bool_], seed: int) -> float:
    """The share of the true neighbours that rows hold, of a sample drawn by seed of the scans in the archive."""
    k = min(found.numbers.shape[1], int(is_there.sum()) - 1)
    if k < 1:
        return 1.0
    drawn = RECALL_QUERIES.generator(seed).permutation(len(is_there))
    drawn = drawn[is_there[drawn]][:NUM_QUERIES]
    truth = without_self(exact_search(embeddings.blocks(is_there), embeddings.take(drawn), k + 1), drawn, k)
    return recall(Neighbours(found.numbers[drawn, :k], found.distances[drawn, :k]), truth)
