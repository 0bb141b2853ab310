"""The patients of an archive as columns: who has an embedding, who is held out, whose scan can hold a crop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raygenesis.archive.catalogue import is_held_out, read_columns
from raygenesis.discovery.coordinates import largest_extent
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import DiscoverySettings
from raygenesis.workspace.artifacts import AUTOENCODER, COMPONENTS
from raygenesis.workspace.files import Place
from raygenesis.workspace.workspace import Workspace

# Which patients of an archive are counted, in a sentence.
LARGE_ENOUGH = "that the archive has with scans large enough to crop"


@dataclass(frozen=True)
class Patients:
    """Volumes by their number: those of the catalogue, or the embedded ones in the order of the embeddings.

    ids: volume ids; subjects: int64 [n], one number a subject; is_held_out, is_roomy (holds the largest crop),
    is_there (still in the archive): bool [n].
    """

    ids: pa.StringArray
    subjects: NDArray[np.int64]
    is_held_out: NDArray[np.bool_]
    is_roomy: NDArray[np.bool_]
    is_there: NDArray[np.bool_]

    def eligible(self, split: str) -> NDArray[np.bool_]:
        """Whether each volume is of a split, and its patterns can be cropped."""
        return self.is_there & self.is_roomy & (self.is_held_out == (split == VALIDATION))

    def among(self, is_kept: NDArray[np.bool_]) -> Patients:
        """As if the archive had those that are kept alone, bool [n]; numbers stay."""
        return replace(self, is_there=self.is_there & is_kept)

    def num_subjects(self, split: str) -> int:
        """Subjects of a split that have a scan large enough to crop."""
        return len(np.unique(self.subjects[self.eligible(split)]))

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Volume ids of some numbers."""
        return [str(self.ids[int(number)]) for number in numbers]


def load_patients(
    workspace: Workspace, discovery: DiscoverySettings, validation_fraction: float, seed: int
) -> Patients:
    """The embedded volumes, and what the catalogue says of them.

    Raises WorkspaceError if a split has none, SettingsError if the auto-encoder learnt from another split.

    Who is held out follows from all volumes of these dimensions in the catalogue: a scan that could not be embedded
    must not move a subject from one split to the other.
    """
    _check_same_split(workspace, validation_fraction, seed)
    ids = Embeddings(workspace.embeddings).ids()
    scans = load_scans(workspace.catalog, discovery, validation_fraction, seed)
    where = pc.index_in(ids, value_set=scans.ids)
    is_there = pc.is_valid(where).to_numpy(zero_copy_only=False)
    row = pc.fill_null(where, 0).to_numpy()
    patients = Patients(ids, scans.subjects[row], scans.is_held_out[row], scans.is_roomy[row], is_there)
    for split in (TRAINING, VALIDATION):
        if not (is_there & (patients.is_held_out == (split == VALIDATION))).any():
            raise WorkspaceError(f"no {split} volume has an embedding: see {workspace.embeddings / 'failures.parquet'}")
    return patients


def load_scans(catalog: Place, discovery: DiscoverySettings, validation_fraction: float, seed: int) -> Patients:
    """All volumes of the catalogue with as many dimensions as a cube, a few columns read."""
    ndim = len(discovery.cube_shape)
    columns = ["volume_id", "subject_id", "shape", "spacing_mm"]
    table = read_columns(catalog, columns, ndim=ndim)
    ids, subjects = (table[name].combine_chunks() for name in ("volume_id", "subject_id"))
    held_out = is_held_out(ids, subjects, validation_fraction, seed)
    sizes = _flat(table["shape"], ndim) * _flat(table["spacing_mm"], ndim)
    is_roomy = np.all(sizes >= np.array(largest_extent(discovery.scales)) - 1e-6, axis=1)
    numbered = subjects.dictionary_encode().indices.to_numpy().astype(np.int64)
    return Patients(ids, numbered, held_out, is_roomy, np.ones(len(ids), bool))


def check_patients(patients: Patients, discovery: DiscoverySettings) -> None:
    """Raise SettingsError if discovery asks for more patients than there are in all."""
    check_counts(patients.num_subjects(TRAINING), patients.num_subjects(VALIDATION), LARGE_ENOUGH, discovery)


def check_counts(num_training: int, num_held_out: int, where: str, discovery: DiscoverySettings) -> None:
    """Raise SettingsError if discovery asks for more patients than there are `where`."""
    for key, wanted, there, kind in (
        ("num_neighbours", discovery.num_neighbours, num_training, "training"),
        ("num_references", discovery.num_references, num_training, "training"),
        ("num_validation_neighbours", discovery.num_validation_neighbours, num_held_out, "held-out"),
    ):
        if wanted > there:
            raise SettingsError(
                f"discovery.{key}={wanted} is more than the {there} {kind} subjects {where}: lower it to at most "
                f"{there} or add scans"
            )


def _check_same_split(workspace: Workspace, validation_fraction: float, seed: int) -> None:
    """Raise SettingsError if what embeds held out other subjects than these settings would."""
    for artifact in (AUTOENCODER, COMPONENTS):
        folder = workspace.folder(artifact)
        made = artifact.read(folder)
        for key, value in (("seed", seed), ("validation_fraction", validation_fraction)):
            if made is not None and made.settings[key] != value:
                raise SettingsError(
                    f"{key}={value} would hold out other subjects than {folder}, made with "
                    f"{key}={made.settings[key]}: give that, or choose another workspace"
                )


def _flat(column: pa.ChunkedArray, ndim: int) -> NDArray[np.float64]:
    return column.combine_chunks().flatten().to_numpy().astype(np.float64).reshape(-1, ndim)
