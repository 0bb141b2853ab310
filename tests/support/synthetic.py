"""Scans and patterns made of numbers, for tests that know what must come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raygenesis.archive.store import level_factors, volume_folder, write_volume
from raygenesis.archive.volume import Volume
from raygenesis.patterns.cells import STEPS, encode
from raygenesis.settings import ArchiveSettings
from raygenesis.training.feeding import Samples


def archived(
    volumes: Path,
    volume_id: str,
    voxels: NDArray[Any],
    spacing_mm: Sequence[float],
    coarse_size: int = 64,
    **facts: Any,
) -> dict[str, Any]:
    """Write a volume and its pyramid, as ingest does; returns its catalogue row. Values 0..1 stay as they are.

    Voxels of one axis more than `spacing_mm` has numbers are channels first.
    """
    ndim = len(spacing_mm)
    volume = Volume(voxels, np.diag([*reversed(spacing_mm), *[1.0] * (4 - ndim)]), ndim=ndim)
    levels = level_factors(volume.shape, coarse_size)
    row = {
        "volume_id": volume_id,
        "subject_id": volume_id,
        "source": f"{volume_id}.nii",
        "source_bytes": 0,
        "modality": "",
        "shape": list(volume.shape),
        "num_channels": volume.num_channels,
        "spacing_mm": list(spacing_mm),
        "affine": volume.affine.ravel().tolist(),
        "dtype": voxels.dtype.name,
        "slope": 1.0,
        "intercept": 0.0,
        "low": [0.0] * volume.num_channels,
        "high": [1.0] * volume.num_channels,
        "levels": [list(factor) for factor in levels],
        "tags": "{}",
        "corrections": [],
        "notes": [],
        "voxel_fingerprint": volume_id,
        "stored_bytes": 0,
        **facts,
    }
    settings = ArchiveSettings(coarse_size=coarse_size, chunk=32, shard=64)
    stored = write_volume(volume_folder(volumes, volume_id), volume, row, settings)
    return row | {"stored_bytes": stored}


def imaged(
    scene: Callable[..., NDArray[np.float64]], shape: Sequence[int], spacing_mm: Sequence[float]
) -> NDArray[np.float32]:
    """What a scanner of this voxel size sees of a scene, a function of mm along each axis: its voxel centres."""
    grid = np.indices(shape).astype(np.float64) + 0.5
    return scene(*(axis * step for axis, step in zip(grid, spacing_mm, strict=True))).astype(np.float32)


def quantised(cubes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cubes as a table's cells keep them."""
    return (np.rint(cubes * STEPS) / STEPS).astype(np.float32)


def pattern_table(
    num_patterns: int = 24, shape: tuple[int, ...] = (8, 8, 8), num_coordinates: int = 2, first: int = 0, seed: int = 0
) -> pa.Table:
    """Patterns whose place can be seen: coordinate c is brighter than c − 1; one scan holds every coordinate once."""
    generator = np.random.default_rng([seed, first])
    coordinate = np.arange(num_patterns) % num_coordinates
    noise = generator.random((num_patterns, *shape), np.float32)
    levels = (coordinate / num_coordinates).reshape(-1, *[1] * len(shape)).astype(np.float32)
    return pa.table(
        {
            "pattern_id": pa.array(np.arange(first, first + num_patterns), pa.int64()),
            "label": pa.array(coordinate, pa.int32()),
            "reference": pa.array(np.zeros(num_patterns), pa.int32()),
            "coordinate": pa.array(coordinate, pa.int16()),
            "rank": pa.array(np.arange(num_patterns) // num_coordinates, pa.int32()),
            "volume_id": [f"scan-{first + number // num_coordinates}" for number in range(num_patterns)],
            "cube": pa.array([encode(cube) for cube in noise / num_coordinates + levels], pa.binary()),
        }
    )


def samples(table: pa.Table, shape: tuple[int, ...] = (8, 8, 8)) -> Samples:
    return Samples([table], "pattern_id", shape)
