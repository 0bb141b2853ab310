"""Finished pattern stores, made without an archive."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raygenesis.patterns.cells import DTYPE, STEPS, encode
from raygenesis.patterns.schema import PATTERN, TRAINING, VALIDATION
from raygenesis.patterns.writer import write_part
from raygenesis.settings import IntensitySettings
from raygenesis.workspace.failures import FAILURES, FailureRow
from raygenesis.workspace.files import write_json, write_table
from raygenesis.workspace.manifest import (
    ArchiveCounts,
    ArchiveManifest,
    EmbeddingsCounts,
    EmbeddingsManifest,
    StoreCounts,
    StoreManifest,
)
from raygenesis.workspace.manifest_files import write_manifest
from raygenesis.workspace.workspace import Workspace

SMALL = "{} mm is smaller than the largest crop, 60×60×60 mm (discovery.scales)"
SOME_FAILURES: list[FailureRow] = [
    {"source": "a", "reason": "damaged when it was cropped"},
    {"source": "b", "reason": SMALL.format("20×30×30")},
    {"source": "c", "reason": SMALL.format("41×30×9")},
]


def noise(row: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(row["pattern_id"]).random(shape, np.float32)


@dataclass(frozen=True)
class StorePlan:
    """A store of R × C classes, K neighbours, V held-out patients and S scales; with R = 0 of C random crops a scan."""

    references: int = 2
    coordinates: int = 4
    neighbours: int = 6
    held_out: int = 2
    scales: int = 2
    shape: tuple[int, ...] = (4, 6, 8)
    ranks_per_part: int = 4
    cube: Callable[[dict[str, Any], tuple[int, ...]], np.ndarray] = noise

    def rows(self, split: str, ranks: range) -> list[dict[str, Any]]:
        """Rows in a store's order: by rank, reference, coordinate, scale."""
        rows = []
        for rank in ranks:
            for reference in range(self.references) or (-1,):
                for coordinate in range(self.coordinates):
                    for scale in range(self.scales) if self.references else (coordinate % self.scales,):
                        number = ((rank * self.references + reference) * self.coordinates + coordinate) * self.scales
                        if not self.references:
                            number = (rank * self.coordinates + coordinate) * self.scales
                        row = {
                            "pattern_id": (number + scale) * 2 + (split == VALIDATION),
                            "label": reference * self.coordinates + coordinate if self.references else -1,
                            "reference": reference, "coordinate": coordinate, "rank": rank, "scale": scale,
                            "split": split, "volume_id": f"{split}-{rank}",
                        }  # fmt: skip
                        box = [float(side) for side in self.shape]
                        row |= {name: box for name in PATTERN.names if name.endswith(("_mm", "_voxels"))}
                        rows.append(row | {"cube": encode(self.cube(row, self.shape))})
        return rows

    def parts(self) -> list[list[dict[str, Any]]]:
        step = self.ranks_per_part
        training = [
            self.rows(TRAINING, range(first, min(first + step, self.neighbours)))
            for first in range(0, self.neighbours, step)
        ]
        return [*training, self.rows(VALIDATION, range(1, self.held_out + 1))]

    def write(self, folder: Path, failures: Sequence[FailureRow] | None = None) -> list[dict[str, Any]]:
        """Make the store in an empty folder; returns its rows in order."""
        parts = self.parts()
        write_store(folder, parts, self, failures or [])
        return [row for part in parts for row in part]


def write_store(
    folder: Path, parts: list[list[dict[str, Any]]], plan: StorePlan, failures: Sequence[FailureRow] | None = None
) -> None:
    """Parts of any rows, and a manifest and failures that say what the plan says."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for part in parts for row in part]
    records = [write_part(folder, number, pa.Table.from_pylist(part, PATTERN)) for number, part in enumerate(parts)]
    write_table(folder / "failures.parquet", pa.Table.from_pylist(list(failures or []), FAILURES))
    scales = [{"extent_mm": [float(side) for side in plan.shape]}] * plan.scales
    counts = {
        "patterns": len(rows),
        "validation": sum(row["split"] == VALIDATION for row in rows),
        "volumes": len({row["volume_id"] for row in rows}),
        "parts": len(parts),
        "failures": len(failures or []),
        "references": plan.references,
        "coordinates": plan.coordinates,
        "neighbours": plan.neighbours,
    }
    manifest = {
        "settings": {
            "discovery": {"cube_shape": list(plan.shape), "scales": scales},
            "intensity": IntensitySettings().model_dump(mode="json"),
            "validation_fraction": 0.2,
        },
        "inputs": {},
        "fingerprint": "made up",
        "finished": "2026-01-01T00:00:00+00:00",
        "version": "0.0.0",
        "counts": counts,
        "cube_shape": list(plan.shape),
        "cube_dtype": DTYPE.str,
        "cube_steps": STEPS,
        "raw_bytes": len(rows) * int(np.prod(plan.shape)) * DTYPE.itemsize,
        "bytes": sum(record.checksum.bytes for record in records),
        "seconds": 2.0,
        "parts": [asdict(record.checksum) for record in records],
    }
    write_json(folder / "manifest.json", manifest)


def finish_archive(workspace: Workspace, fingerprint: str, num_volumes: int) -> None:
    """The manifest of an archive whose catalogue and volumes are there."""
    counts = ArchiveCounts(scans=num_volumes, volumes=num_volumes, subjects=num_volumes, failures=0)
    write_manifest(workspace.archive, ArchiveManifest(fingerprint=fingerprint, counts=counts, source_bytes=0))


def finish_embeddings(workspace: Workspace, fingerprint: str, num_volumes: int, encoder: str = "given") -> None:
    """The manifest of embeddings whose parts are there."""
    counts, inputs = EmbeddingsCounts(volumes=num_volumes), {"encoder": encoder}
    write_manifest(workspace.embeddings, EmbeddingsManifest(fingerprint=fingerprint, inputs=inputs, counts=counts))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a store's manifest anew, after `change` has changed it in place."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    write_json(path, manifest)


def finish_parts(folder: Path, num_parts: int, shape: tuple[int, ...]) -> None:
    """The manifest of a store of which parts are there and nothing else is asked."""
    counts = StoreCounts(
        patterns=0, validation=0, volumes=0, parts=num_parts, failures=0, references=0, coordinates=0, neighbours=0
    )
    write_manifest(folder, StoreManifest(counts=counts, cube_shape=shape, raw_bytes=0))
