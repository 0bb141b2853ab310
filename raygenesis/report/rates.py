"""What a workspace tells about costs: manifests, and the sizes that they leave out."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygenesis.cluster import MIN_LOGICAL_CPUS
from raygenesis.config import Settings
from raygenesis.report.sections import Made, Row
from raygenesis.training.metrics import read_metrics
from raygenesis.workspace import Workspace, parquet_file, read_table

STAGES = ("archive", "autoencoder", "embeddings", "index", "patterns")
MOST_ROWS = 1000  # of the catalogue, measured in memory


@dataclass(frozen=True)
class Measured:
    """What a workspace tells about costs.

    manifests: of finished stages, `runs` being that of a run on the present patterns; epoch_seconds: of all epochs;
    row_bytes, table_bytes: a row of the catalogue as Python objects and in a table; scan_bytes: the voxels of the
    largest scan; input_voxels: of a coarse scan; latent_size: numbers of an embedding; num_tasks: Ray's tasks at once.
    """

    manifests: Mapping[str, Row]
    epoch_seconds: Mapping[str, float]
    row_bytes: float
    table_bytes: float
    scan_bytes: float
    input_voxels: int
    latent_size: int
    num_tasks: int

    def trained_seconds(self, stage: str) -> float:
        """Seconds of a trained stage: the manifest has the last call's, the metrics those of every call's epochs."""
        return max(self.manifests[stage]["seconds"], self.epoch_seconds[stage])


def measured(workspace: Workspace, settings: Settings, made: Mapping[str, Made]) -> Measured:
    """What the artifacts tell; of the runs, the newest that learnt from the present patterns."""
    finished = {name: artifact for name, artifact in made.items() if name in STAGES and artifact.manifest}
    store = finished["patterns"].manifest["fingerprint"] if "patterns" in finished else None
    runs = [one for name, one in made.items() if name.startswith("runs/") and one.manifest]
    learnt = [one for one in runs if store and one.manifest["inputs"].get("patterns") == store]
    if learnt:
        finished["runs"] = max(learnt, key=lambda one: one.manifest["finished"])
    trained = {stage: finished[stage].folder for stage in ("autoencoder", "runs") if stage in finished}
    seconds = {stage: sum(row.get("seconds") or 0 for row in read_metrics(path)) for stage, path in trained.items()}
    sample = next(parquet_file(workspace.catalog).iter_batches(MOST_ROWS))
    scans = read_table(workspace.catalog, columns=["shape", "num_channels", "dtype"]).to_pylist()
    part = next(workspace.embeddings.glob("part-*.parquet"), None)
    encoder = finished["autoencoder"].manifest["settings"] if "autoencoder" in finished else settings.model_dump()
    return Measured(
        manifests={stage: artifact.manifest for stage, artifact in finished.items()},
        epoch_seconds=seconds,
        row_bytes=_held(sample.to_pylist()) / sample.num_rows,
        table_bytes=sample.nbytes / sample.num_rows,
        scan_bytes=max(math.prod(s["shape"]) * s["num_channels"] * np.dtype(s["dtype"]).itemsize for s in scans),
        input_voxels=math.prod(encoder["autoencoder"]["input_shape"]),
        latent_size=parquet_file(part).schema_arrow.field("embedding").type.list_size if part else 0,
        num_tasks=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
    )


def _held(item: Any) -> int:
    """Bytes of a JSON-like tree in memory; keys are shared."""
    inside = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return sys.getsizeof(item) + sum(map(_held, inside))
