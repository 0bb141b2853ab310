"""OME-Zarr 0.5 volumes: written by zarr-python, read by tensorstore.

One image a folder, axes z y x (2D: y x), a pyramid of levels, lz4 + bit shuffle in chunks within shards. Written
aside and renamed; the group's own `zarr.json` is written last: a folder without it is not a volume.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from raygenesis._version import __version__
from raygenesis.archive.volume import Volume
from raygenesis.config import ArchiveSettings
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.workspace import folder_bytes, publish

AXES = ("z", "y", "x")
ATTRIBUTES = "raygenesis"


def level_factors(shape: tuple[int, ...], coarse_size: int) -> list[tuple[int, ...]]:
    """How many voxels of the scan one voxel of each pyramid level spans, per axis.

    Each level halves the axes that are still longer than `coarse_size`.
    """
    factors = [(1,) * len(shape)]
    while True:
        sides = [-(-side // factor) for side, factor in zip(shape, factors[-1], strict=True)]
        if max(sides) <= coarse_size:
            return factors
        factors.append(
            tuple(
                factor * (2 if side > coarse_size else 1)
                for side, factor in zip(sides, factors[-1], strict=True)
            )
        )


def halve(voxels: NDArray[Any], steps: tuple[int, ...]) -> NDArray[Any]:
    """Mean over blocks of `steps` (1 or 2 per axis); an odd side repeats its last voxel; the type is kept."""
    for axis, step in enumerate(steps):
        if step == 2:
            last = [slice(None)] * voxels.ndim
            last[axis] = slice(-1, None)
            if voxels.shape[axis] % 2:
                voxels = np.concatenate([voxels, voxels[tuple(last)]], axis)
    blocks = voxels.reshape([n for side, step in zip(voxels.shape, steps, strict=True) for n in (side // step, step)])
    is_integer = voxels.dtype.kind in "iu"
    # float32 holds the sums of 16-bit integers exactly, and float64 those of 32-bit ones.
    precision = np.float64 if is_integer and voxels.dtype.itemsize > 2 else np.float32
    means = blocks.mean(axis=tuple(range(1, blocks.ndim, 2)), dtype=precision)
    return np.rint(means).astype(voxels.dtype) if is_integer else means.astype(voxels.dtype)


def write_volume(folder: Path, volume: Volume, record: Mapping[str, Any], settings: ArchiveSettings) -> int:
    """Write a volume and its pyramid, with `record` (a catalogue row) in its attributes; returns bytes on disk.

    A whole volume that is there already stays: folders are named by content. Raises WorkspaceError if it cannot be
    written.
    """
    if folder.exists() and read_record(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        publish(folder, lambda aside: _write(aside, volume, record, settings))
    except WorkspaceError:
        if read_record(folder) is None:
            raise  # otherwise another task has stored a copy of the same scan meanwhile
    return read_record(folder)["stored_bytes"]


def _write(folder: Path, volume: Volume, record: Mapping[str, Any], settings: ArchiveSettings) -> None:
    factors = level_factors(volume.voxels.shape, settings.coarse_size)
    voxels = volume.voxels
    for level, factor in enumerate(factors):
        if level:
            steps = tuple(now // before for now, before in zip(factor, factors[level - 1], strict=True))
            voxels = halve(voxels, steps)
        _write_level(folder / str(level), voxels, settings)
    attributes = {
        "ome": {"version": "0.5", "multiscales": [_multiscale(volume, factors)]},
        ATTRIBUTES: {**record, "stored_bytes": folder_bytes(folder)},
    }
    zarr.create_group(folder, zarr_format=3, attributes=attributes)


def _write_level(folder: Path, voxels: NDArray[Any], settings: ArchiveSettings) -> None:
    chunks = tuple(min(settings.chunk, side) for side in voxels.shape)
    shards = tuple(
        chunk * -(-min(settings.shard, side) // chunk) for chunk, side in zip(chunks, voxels.shape, strict=True)
    )
    array = zarr.create_array(
        folder,
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=chunks,
        shards=shards,
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
        dimension_names=AXES[-voxels.ndim :],
        zarr_format=3,
    )
    array[...] = voxels


def _multiscale(volume: Volume, factors: list[tuple[int, ...]]) -> dict[str, Any]:
    spacing = volume.spacing_mm
    datasets = []
    for level, factor in enumerate(factors):
        scale = [step * n for step, n in zip(spacing, factor, strict=True)]
        # The centre of a coarse voxel lies half a voxel of its own, less half a fine one, from the first centre.
        shift = [step * (n - 1) / 2 for step, n in zip(spacing, factor, strict=True)]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in AXES[-volume.voxels.ndim :]]
    return {
        "axes": axes,
        "datasets": datasets,
        "type": "mean",
        "metadata": {"method": "block mean over 2 voxels an axis", "version": f"raygenesis {__version__}"},
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """The catalogue row in a volume's attributes, or None where there is no whole volume."""
    try:
        return json.loads((folder / "zarr.json").read_text())["attributes"][ATTRIBUTES]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


@functools.cache
def _context() -> tensorstore.Context:
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": 64 * 2**20}})


def open_level(folder: Path, level: int) -> tensorstore.TensorStore:
    """A lazy array of one pyramid level: slice it, then `.read().result()`.

    Raises ScanError if the level is missing or its metadata is damaged.
    """
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder / str(level)}/"}}
    try:
        return tensorstore.open(spec, read=True, open=True, context=_context()).result()
    except (ValueError, OSError) as error:
        raise ScanError(f"{folder.name} level {level} cannot be opened ({_fault(error)})") from None


def read_region(folder: Path, level: int, region: tuple[slice, ...]) -> NDArray[Any]:
    """Voxels of a region of one level. Raises ScanError if a chunk is damaged."""
    array = open_level(folder, level)
    try:
        return array[region].read().result()
    except (ValueError, OSError) as error:
        raise ScanError(f"{folder.name} level {level} is damaged ({_fault(error)})") from None


def _fault(error: Exception) -> str:
    """What tensorstore says, without the specification that it appends."""
    return str(error).splitlines()[0].partition(" [tensorstore_spec=")[0]
