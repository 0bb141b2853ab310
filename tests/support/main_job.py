"""The main job on a few real heads, small enough for tests, and the command line as a user has it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

NUM_HEADS = 12
TINY = [
    "discovery.num_neighbours=6",
    "discovery.num_validation_neighbours=2",
    "discovery.num_coordinates=4",
    "autoencoder.num_epochs=2",
    "pretraining.base_width=2",
    "pretraining.num_classification_epochs=1",
    "pretraining.num_joint_epochs=2",
]


def raygenesis(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    command = [sys.executable, "-m", "raygenesis", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **(environment or {})}
    )


@dataclass(frozen=True)
class MainJob:
    """What the main job left: its scans, workspace, output and error output."""

    scans: Path
    workspace: Path
    output: str
    errors: str


BAD_SCANS = {
    "truncated.nii.gz": "cut short or damaged",
    "with-nan.nii.gz": "NaN or infinite",
    "four-dimensional.nii.gz": "choose archive.fourth_axis",
    "not-nifti.nii.gz": "not readable as NIfTI",
    "zz-copy-of-the-first.nii.gz": "same voxels as",
}


def content(workspace: Path) -> dict[str, bytes]:
    """Bytes of what must not depend on kills: volumes, embeddings, graphs and patterns."""
    paths = [
        *workspace.glob("archive/volumes/**/*"), *workspace.glob("embeddings/part-*"),
        *workspace.glob("index/shard-*"), *workspace.glob("patterns/part-*"), workspace / "archive" / "catalog.parquet",
    ]  # fmt: skip
    return {str(path.relative_to(workspace)): path.read_bytes() for path in paths if path.is_file()}


def losses(workspace: Path) -> list[tuple[float, float]]:
    rows = pq.read_table(workspace / "runs" / "default" / "metrics.parquet").to_pylist()
    return [(row["train_loss"], row["val_loss"]) for row in rows]
