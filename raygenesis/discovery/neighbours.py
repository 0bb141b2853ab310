"""Who is like whom: the patients of an archive, the index over their embeddings, and the search for neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from raygenesis import cluster
from raygenesis.archive.catalogue import held_out_subjects, read_catalogue
from raygenesis.config import Settings
from raygenesis.discovery.coordinates import largest_extent
from raygenesis.discovery.crop import size_mm
from raygenesis.discovery.embed import read_embeddings
from raygenesis.discovery.index import build_shard, exact_search, recall, search_shards
from raygenesis.errors import SettingsError, WorkspaceError
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.progress import mib, say
from raygenesis.workspace import Stage, Stopwatch, Workspace, manifest_of, read_json

RECALL_QUERIES = 100


@dataclass(frozen=True)
class Patients:
    """The embedded volumes of an archive.

    rows: catalogue rows in order of volume id; vectors: float32 [n, d]; splits: row numbers of each split, as they
    are indexed; is_roomy: bool [n], whether a scan holds the largest crop.
    """

    rows: Sequence[Mapping[str, Any]]
    vectors: NDArray[np.float32]
    splits: Mapping[str, NDArray[np.int64]]
    is_roomy: NDArray[np.bool_]

    def roomy(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split's scans that are large enough to crop."""
        members = self.splits[split]
        return members[self.is_roomy[members]]

    def num_subjects(self, split: str) -> int:
        """Subjects of a split that have a scan large enough to crop."""
        return len({self.rows[number]["subject_id"] for number in self.roomy(split)})


def load_patients(workspace: Workspace, settings: Settings) -> Patients:
    """Read catalogue and embeddings.

    Who is held out follows from the whole catalogue, as in every other stage: a scan that could not be embedded must
    not move a subject from one split to the other.
    """
    _check_same_split(workspace, settings)
    ids, vectors = read_embeddings(workspace.embeddings)
    catalogue = read_catalogue(workspace.catalog, ndim=settings.ndim)
    held_out = held_out_subjects(catalogue, settings.validation_fraction, settings.seed)
    embedded = set(ids)
    rows = [row for row in catalogue if row["volume_id"] in embedded]
    is_held_out = np.array([row["subject_id"] in held_out for row in rows], bool)
    splits = {TRAINING: np.flatnonzero(~is_held_out), VALIDATION: np.flatnonzero(is_held_out)}
    for split, members in splits.items():
        if not len(members):
            raise WorkspaceError(f"no {split} volume has an embedding: see {workspace.embeddings / 'failures.parquet'}")
    reach = np.array(largest_extent(settings.discovery.scales))
    is_roomy = np.array([(size_mm(row) >= reach - 1e-6).all() for row in rows], bool)
    return Patients(rows, vectors, splits, is_roomy)


def _check_same_split(workspace: Workspace, settings: Settings) -> None:
    """Raise SettingsError if the auto-encoder held out other subjects than these settings would."""
    made = read_json(workspace.autoencoder / "manifest.json")
    for key in ("seed", "validation_fraction"):
        if made is not None and made["settings"][key] != getattr(settings, key):
            raise SettingsError(
                f"{key}={getattr(settings, key)} would hold out other subjects than {workspace.autoencoder}, made with "
                f"{key}={made['settings'][key]}: give that, or choose another workspace"
            )


def build_index(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """HNSW shards over the embeddings of training and of held-out volumes; returns the manifest with the recall.

    The two splits never share a shard, so a search in one cannot return the other.
    """
    embeddings = manifest_of(workspace.embeddings, "embed")
    k = settings.discovery.num_neighbours
    chosen = settings.model_dump(mode="json", include={"index", "seed", "validation_fraction"})
    stage = Stage(workspace.index, {**chosen, "num_neighbours": k}, {"embeddings": embeddings["fingerprint"]})
    if stage.is_finished():
        say("index", f"nothing to do: it is in {workspace.index}")
        return manifest_of(workspace.index, "discover")
    watch = Stopwatch()
    patients = load_patients(workspace, settings)
    with stage.claimed():
        cluster.connect()
        measured, shards = {}, {}
        for split, members in patients.splits.items():
            paths = _build_shards(workspace.index, split, patients.vectors[members], settings)
            shards[split] = [path.name for path in paths]
            measured[split] = _measured_recall(paths, patients.vectors[members], settings)
        counts = {"volumes": len(patients.rows), "shards": sum(map(len, shards.values()))}
        manifest = stage.finish(counts, watch.seconds, recall=measured, shards=shards, metric="l2")
        text = ", ".join(f"{value:.4f} among {split} volumes" for split, value in measured.items())
        say(
            "index",
            f"{counts['volumes']} volumes in {counts['shards']} HNSW shards, recall@{k} against exact search {text}, "
            f"{mib(manifest['bytes'])}, {watch.seconds:.1f} s → {workspace.index}",
        )
        return manifest


def choose_references(patients: Patients, settings: Settings) -> list[int]:
    """Row numbers of R training volumes of different subjects, drawn by seed."""
    generator = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(1,)))
    chosen: dict[str, int] = {}
    for number in generator.permutation(patients.roomy(TRAINING)):
        chosen.setdefault(patients.rows[number]["subject_id"], int(number))
        if len(chosen) == settings.discovery.num_references:
            break
    return list(chosen.values())


def find_neighbours(
    patients: Patients, split: str, reference: int, shards: Sequence[Path], settings: Settings
) -> list[int]:
    """Row numbers of the volumes of a split nearest to a reference, one a subject, nearest first.

    In training the reference itself comes first. Scans too small to crop are passed over.
    """
    discovery = settings.discovery
    wanted = discovery.num_neighbours if split == TRAINING else discovery.num_validation_neighbours
    members, roomy = patients.splits[split], set(patients.roomy(split).tolist())
    query = patients.vectors[reference][None]
    # A subject's further scans, and scans that are too small, take places in the list.
    k = min(len(members), wanted + len(members) - patients.num_subjects(split))
    method = settings.index.method
    if method == "hnsw" or (method == "auto" and len(members) > settings.index.exact_limit):
        found = search_shards(shards, query, k, settings.index)
    else:
        found = exact_search(patients.vectors[members], query, k)
    chosen: dict[str, int] = {patients.rows[reference]["subject_id"]: reference} if split == TRAINING else {}
    for number in members[found.numbers[0]].tolist():
        if number in roomy:
            chosen.setdefault(patients.rows[number]["subject_id"], number)
    return list(chosen.values())[:wanted]


def check_counts(num_training: int, num_held_out: int, where: str, settings: Settings) -> None:
    """Raise SettingsError if discovery asks for more patients than there are `where`."""
    discovery = settings.discovery
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


def _build_shards(folder: Path, split: str, vectors: NDArray[np.float32], settings: Settings) -> list[Path]:
    size = settings.index.volumes_per_shard
    build = ray.remote(build_shard)
    paths = [folder / f"shard-{split}-{number:05d}.hnsw" for number in range(-(-len(vectors) // size))]
    starts = range(0, len(vectors), size)
    ray.get(
        [
            build.remote(path, vectors[start : start + size], start, settings.index, settings.seed)
            for path, start in zip(paths, starts, strict=True)
        ]
    )
    return paths


def _measured_recall(paths: Sequence[Path], vectors: NDArray[np.float32], settings: Settings) -> float:
    """Recall of the graphs at the K of discovery, against exact search, over a seeded sample of queries."""
    generator = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(3,)))
    queries = vectors[generator.permutation(len(vectors))[:RECALL_QUERIES]]
    k = min(settings.discovery.num_neighbours, len(vectors))
    return recall(search_shards(paths, queries, k, settings.index), exact_search(vectors, queries, k))
