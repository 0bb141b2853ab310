"""Patients of whom everything is known, and embeddings of any vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.patients import Patients
from raygenesis.settings import DiscoverySettings
from raygenesis.workspace.files import write_table

# Scans on a line, at 0, 1, 2 …; those of the last four subjects are held out. Subjects b and h have two scans.
SUBJECTS = list("abbcdefghhij")
HELD_OUT = np.array([subject in "ghij" for subject in SUBJECTS])
TOO_SMALL = 4  # subject d


def patients() -> Patients:
    ids = [f"{number:02d}" for number in range(len(SUBJECTS))]
    numbered = np.unique(SUBJECTS, return_inverse=True)[1]
    is_there = np.ones(len(SUBJECTS), bool)
    return Patients(ids, numbered, HELD_OUT, np.arange(len(SUBJECTS)) != TOO_SMALL, is_there)


def embedded(folder: Path, ids: list[str], vectors: np.ndarray, failed: frozenset[str] = frozenset()) -> Embeddings:
    """Embeddings in parts of five volumes."""
    folder.mkdir(exist_ok=True)
    for start in range(0, len(ids), 5):
        some, rows = ids[start : start + 5], np.float32(vectors[start : start + 5])
        table = pa.table(
            {
                "volume_id": pa.array(some, pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(rows.ravel(), vectors.shape[1]),
                "failure": ["damaged" if name in failed else "" for name in some],
            }
        )
        write_table(folder / f"part-{start:09d}.parquet", table)
    return Embeddings(folder)


def on_a_line(folder: Path) -> Embeddings:
    return embedded(folder, patients().ids, np.arange(len(SUBJECTS))[:, None] * np.ones((1, 3)))


def discovery_settings(
    neighbours: int = 4, held_out: int = 3, references: int = 2, **chosen: object
) -> DiscoverySettings:
    return DiscoverySettings(
        num_references=references, num_neighbours=neighbours, num_validation_neighbours=held_out, **chosen
    )
