"""The table of embeddings, in blocks: a million vectors pass through, few at a time.

A volume's number is its place among all embedded volumes in the order of the parts; parts are only ever added, so
numbers stay as an archive grows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from raygenesis.archive.volume_identity import keys_of
from raygenesis.discovery.exact import check_finite
from raygenesis.errors import WorkspaceError
from raygenesis.workspace.artifacts import ARCHIVE, EMBEDDINGS
from raygenesis.workspace.files import Place, parquet_dataset, parquet_file, store_fault
from raygenesis.workspace.manifest import EmbeddingsManifest
from raygenesis.workspace.workspace import Workspace

BLOCK_ROWS = 8192


def present_embeddings(workspace: Workspace, folder: Place | None = None) -> EmbeddingsManifest:
    """The manifest of the embeddings in a folder, or else of the workspace's own.

    Raises WorkspaceError where there are none, or none of the archive as it is.
    """
    folder = workspace.embeddings if folder is None else folder
    embedded, archive = EMBEDDINGS.require(folder), ARCHIVE.read(workspace.archive)
    if archive is not None and embedded.archive and embedded.archive != archive.fingerprint:
        raise WorkspaceError(
            f"{folder} is of another state of {workspace.archive}: run `raygenesis embed`, which brings it up to date"
        )
    return embedded


@dataclass(frozen=True)
class Embeddings:
    """The embeddings in a folder; volumes that failed are left out."""

    folder: Place

    def ids(self) -> pa.StringArray:
        """Volume ids by number."""
        with self._naming_damage():
            table = self._dataset().to_table(columns=["volume_id"], filter=pc.field("failure") == "")
        return table["volume_id"].combine_chunks()

    def keys(self) -> pa.StringArray:
        """By number what identifies a volume as it was embedded (`keys_of`); its id alone of an earlier version."""
        with self._naming_damage():
            dataset = self._dataset()
            names = [name for name in ("volume_id", "fingerprint") if name in dataset.schema.names]
            table = dataset.to_table(columns=names, filter=pc.field("failure") == "")
        key = keys_of(*table.columns) if len(names) == 2 else table["volume_id"]
        return key.combine_chunks()

    @property
    def size(self) -> int:
        """Length of a vector."""
        with self._naming_damage():
            return self._dataset().schema.field("embedding").type.list_size

    @property
    def num_volumes(self) -> int:
        """How many volumes have a number. Parts are counted once: a copy for another process knows their counts."""
        with self._naming_damage():
            return sum(self._counts)

    def check(self) -> None:
        """Raise WorkspaceError where parts hold vectors of several lengths, SearchError for NaN and infinity."""
        with self._naming_damage():
            sizes = [parquet_file(path).schema_arrow.field("embedding").type.list_size for path in self._paths()]
        if others := set(sizes) - set(sizes[:1]):
            raise WorkspaceError(
                f"{self.folder} holds embeddings of {sizes[0]} and of {min(others)} numbers, of two encoders: remove "
                "that folder and run `raygenesis embed`"
            )
        for _, vectors in self.blocks():
            check_finite(vectors)

    def blocks(self, keep: NDArray[np.bool_] | None = None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Numbers [m] and vectors [m, d], about BLOCK_ROWS at a time, in order; those where `keep` holds.

        Raises WorkspaceError if a part is damaged.
        """
        with self._naming_damage():
            yield from self._blocks(keep)

    def _blocks(self, keep: NDArray[np.bool_] | None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        first, size = 0, self.size
        pending: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        num_pending = 0
        wanted = pc.field("failure") == ""
        for batch in self._dataset().to_batches(columns=["embedding"], filter=wanted, batch_size=BLOCK_ROWS):
            vectors = batch["embedding"].flatten().to_numpy().reshape(-1, size)
            numbers = np.arange(first, first + len(vectors))
            first += len(vectors)
            if keep is not None:
                chosen = keep[numbers]
                numbers, vectors = numbers[chosen], vectors[chosen]
            pending.append((numbers, vectors))
            num_pending += len(numbers)
            if num_pending >= BLOCK_ROWS:
                yield _joined(pending)
                pending, num_pending = [], 0
        if num_pending:
            yield _joined(pending)

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some numbers, in the order asked for; the table is read once."""
        wanted, back = np.unique(numbers, return_inverse=True)
        out = np.empty((len(wanted), self.size), np.float32)
        if len(wanted):
            keep = np.zeros(int(wanted[-1]) + 1, bool)
            keep[wanted] = True
            filled = 0
            with self._naming_damage():
                for vectors in self._of_parts(keep):
                    out[filled : filled + len(vectors)] = vectors
                    filled += len(vectors)
        return out[back]

    def of(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors [d] of some volumes, by volume id; those that have none are left out."""
        where = pc.field("volume_id").isin(list(ids)) & (pc.field("failure") == "")
        with self._naming_damage():
            table = self._dataset().to_table(columns=["volume_id", "embedding"], filter=where)
        vectors = (np.array(cell, np.float32) for cell in table["embedding"].to_pylist())
        return dict(zip(table["volume_id"].to_pylist(), vectors, strict=True))

    def span(self, first: int, last: int) -> NDArray[np.float32]:
        """The vectors numbered first to last - 1."""
        return self.take(np.arange(first, last))

    def _of_parts(self, keep: NDArray[np.bool_]) -> Iterator[NDArray[np.float32]]:
        """The kept vectors of each part that has any; the other parts are not read."""
        first = 0
        for path, count in zip(self._paths(), self._counts, strict=True):
            chosen = np.flatnonzero(keep[first : first + count])
            if len(chosen):
                table = parquet_dataset([path]).to_table(columns=["embedding"], filter=pc.field("failure") == "")
                vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(count, -1)
                yield vectors[chosen]
            first += count

    @functools.cached_property
    def _counts(self) -> list[int]:
        """How many numbers each part has."""
        table = self._dataset().to_table(columns=["__fragment_index"], filter=pc.field("failure") == "")
        return np.bincount(table["__fragment_index"].to_numpy(), minlength=len(self._paths())).tolist()

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            if (fault := store_fault(self.folder, error)) is not None:
                raise fault from error
            damaged = next((path for path in self._paths() if not _opens(path)), self.folder)
            raise WorkspaceError(f"{damaged} is damaged: run `raygenesis embed`, which makes it anew") from None

    def _paths(self) -> list[Place]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _dataset(self) -> ds.Dataset:
        return parquet_dataset(self._paths())


def _opens(path: Place) -> bool:
    try:
        return parquet_file(path).metadata is not None
    except (pa.ArrowInvalid, OSError):
        return False


def _joined(
    pending: list[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    numbers, vectors = zip(*pending, strict=True)
    return np.concatenate(numbers), np.concatenate(vectors)
