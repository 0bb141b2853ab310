"""OME-Zarr 0.5 volumes.

One image a folder, axes z y x (2D: y x; c first where there are channels), a pyramid of levels. Written aside and
renamed; the group's own `zarr.json` is written last: a folder without it is not a volume.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from raygenesis._version import __version__
from raygenesis.archive.catalogue import VolumeRecord
from raygenesis.archive.reading import Array, begin_opening
from raygenesis.archive.volume import Volume
from raygenesis.archive.writing import write_array
from raygenesis.errors import ScanError, WorkspaceError
from raygenesis.settings import ArchiveSettings
from raygenesis.workspace.files import Place, below, folder_bytes, publish, remove_tree

AXES = ("z", "y", "x")
# Where a scan's indices rise to, in the words of NGFF's RFC-4. Of a single image nobody knows the plane.
ORIENTATIONS = {"z": "inferior-to-superior", "y": "posterior-to-anterior", "x": "left-to-right"}
ATTRIBUTES = "raygenesis"
GROUP_FILE = "zarr.json"

# Levels that are opened and read at once where many are asked for.
LEVELS_AT_ONCE = 16

# Voxels of the first axis that a pyramid level is made from at a time.
SLAB = 64

Result = TypeVar("Result")


class StoredRecord(VolumeRecord):
    """What a volume's attributes hold: its record, and how many volumes its scan has (`num_siblings`)."""

    num_siblings: int


def volume_folder(volumes: Place, volume_id: str) -> Place:
    """Where a volume of the archive lies; raises RaygenesisError for an id that leads out of the folder."""
    return below(volumes, f"{volume_id}.ome.zarr")


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
            tuple(factor * (2 if side > coarse_size else 1) for side, factor in zip(sides, factors[-1], strict=True))
        )


def level_shape(row: VolumeRecord, level: int) -> list[int]:
    """Sides of a pyramid level of a catalogue row's scan, z y x (2D: y x)."""
    return [-(-side // factor) for side, factor in zip(row["shape"], row["levels"][level], strict=True)]


def halve(voxels: NDArray[Any], steps: tuple[int, ...]) -> NDArray[Any]:
    """Mean over blocks of `steps` (1 or 2 per axis); an odd side repeats its last voxel; the type is kept.

    Goes through the first spatial axis in slabs, so that what it holds beside input and output stays small.
    """
    shape = tuple(-(-side // step) for side, step in zip(voxels.shape, steps, strict=True))
    out = np.empty(shape, voxels.dtype)
    axis = max(0, voxels.ndim - 3)
    for first in range(0, shape[axis], SLAB):
        last = min(first + SLAB, shape[axis])
        before = (slice(None),) * axis
        out[(*before, slice(first, last))] = _block_means(
            voxels[(*before, slice(first * steps[axis], last * steps[axis]))], steps
        )
    return out


def _block_means(voxels: NDArray[Any], steps: tuple[int, ...]) -> NDArray[Any]:
    missing = [(0, side % step) for side, step in zip(voxels.shape, steps, strict=True)]
    if any(after for _, after in missing):
        voxels = np.pad(voxels, missing, mode="edge")
    is_integer = voxels.dtype.kind in "iu"
    # Exact sums: of up to 16 bits in 32, of more in float64's 53.
    precision = np.float32 if not is_integer else np.int32 if voxels.dtype.itemsize <= 2 else np.float64
    total: NDArray[Any] = voxels
    for axis in reversed(range(voxels.ndim)):  # the last first: what follows runs along memory
        if steps[axis] == 2:
            even, odd = ((slice(None),) * axis + (slice(start, None, 2),) for start in (0, 1))
            total = np.add(total[even], total[odd], dtype=precision)
    means = total * (1 / np.prod(steps))
    return np.rint(means, out=means).astype(voxels.dtype) if is_integer else means.astype(voxels.dtype)


def pyramid(volume: Volume, factors: Sequence[Sequence[int]]) -> Iterator[NDArray[Any]]:
    """The levels of a volume's pyramid, the finest first; factors: of each level, as `level_factors` returns them."""
    voxels = volume.voxels
    channel = (1,) * (voxels.ndim - volume.ndim)
    yield voxels
    for before, now in itertools.pairwise(factors):
        steps = tuple(each // earlier for each, earlier in zip(now, before, strict=True))
        voxels = halve(voxels, channel + steps)
        yield voxels


def write_volume(folder: Place, volume: Volume, record: StoredRecord, settings: ArchiveSettings) -> int:
    """Write a volume and its pyramid, with `record` and its bytes on disk in its attributes; returns these bytes.

    A whole volume that is there already stays: folders are named by content. Raises WorkspaceError if it cannot be
    written.
    """
    if folder.exists() and read_whole_record(folder) is None:
        remove_tree(folder)
    try:
        publish(folder, lambda aside: _write(aside, volume, record, settings))
    except WorkspaceError:
        if read_whole_record(folder) is None:
            raise  # otherwise another task has stored a copy of the same scan meanwhile
    stored = read_record(folder)
    assert stored is not None
    return stored["stored_bytes"]


def _write(folder: Path, volume: Volume, record: StoredRecord, settings: ArchiveSettings) -> None:
    factors = level_factors(volume.shape, settings.coarse_size)
    for level, voxels in enumerate(pyramid(volume, factors)):
        _write_level(folder / str(level), voxels, volume.ndim, settings)
    attributes = {
        "ome": {"version": "0.5", "multiscales": [_multiscale(volume, factors)]},
        ATTRIBUTES: {**record, "stored_bytes": folder_bytes(folder)},
    }
    zarr.create_group(folder, zarr_format=3, attributes=attributes)


def _write_level(folder: Path, voxels: NDArray[Any], ndim: int, settings: ArchiveSettings) -> None:
    channel = [1] * (voxels.ndim - ndim)
    chunks = [min(settings.chunk, side) for side in voxels.shape[-ndim:]]
    shards = [
        chunk * -(-min(settings.shard, side) // chunk) for chunk, side in zip(chunks, voxels.shape[-ndim:], strict=True)
    ]
    write_array(folder, voxels, channel + chunks, channel + shards, axes_of(voxels.ndim, ndim))


def axes_of(num_axes: int, ndim: int) -> tuple[str, ...]:
    """Names of an array's axes: z y x or y x, after c where there are channels."""
    return ("c",) * (num_axes - ndim) + AXES[-ndim:]


def _multiscale(volume: Volume, factors: list[tuple[int, ...]]) -> dict[str, Any]:
    spacing = volume.spacing_mm
    num_channel_axes = volume.voxels.ndim - volume.ndim
    datasets = []
    for level, factor in enumerate(factors):
        scale = [1.0] * num_channel_axes + [step * n for step, n in zip(spacing, factor, strict=True)]
        # The centre of a coarse voxel lies half a voxel of its own, less half a fine one, from the first centre.
        shift = [0.0] * num_channel_axes + [step * (n - 1) / 2 for step, n in zip(spacing, factor, strict=True)]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes: list[dict[str, Any]] = [{"name": "c", "type": "channel"}] * num_channel_axes
    for name in AXES[-volume.ndim :]:
        orientation = {"orientation": {"type": "anatomical", "value": ORIENTATIONS[name]}} if volume.ndim == 3 else {}
        axes.append({"name": name, "type": "space", "unit": "millimeter", **orientation})
    return {
        "axes": axes,
        "datasets": datasets,
        "type": "mean",
        "metadata": {"method": "block mean over 2 voxels an axis", "version": f"raygenesis {__version__}"},
    }


def read_record(folder: Place) -> StoredRecord | None:
    """The record in a volume's attributes, or None where there is no whole volume."""
    try:
        text = (folder / GROUP_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(text)["attributes"][ATTRIBUTES]
    except (ValueError, KeyError, TypeError):
        return None


def read_whole_record(folder: Place) -> StoredRecord | None:
    """As `read_record`, of a volume whose files have as many bytes as were written."""
    record = read_record(folder)
    if record is None or folder_bytes(folder) - (folder / GROUP_FILE).stat().st_size != record["stored_bytes"]:
        return None
    return record


def open_level(folder: Place, level: int) -> Array:
    """One pyramid level, to read regions of. Raises ScanError if it is missing or its metadata are damaged."""
    return _opened(folder, level, begin_opening(folder / str(level)))


def _opened(folder: Place, level: int, opening: Callable[[], Array]) -> Array:
    try:
        return opening()
    except ScanError as error:
        raise ScanError(f"{folder.name} level {level} cannot be opened ({error})") from None


def read_region(folder: Place, level: int, region: Sequence[slice], channel: int = 0) -> NDArray[Any]:
    """Voxels of a spatial region of one level and channel. Raises ScanError if a chunk is damaged."""
    return read_regions(folder, level, [region], channel)[0]


def read_regions(folder: Place, level: int, regions: Sequence[Sequence[slice]], channel: int = 0) -> list[NDArray[Any]]:
    """Voxels of several regions of one level and channel; what they share is read once."""
    (found,) = read_levels([LevelRegions(folder, level, regions)], channel)
    if isinstance(found, ScanError):
        raise found
    return found


class LevelRegions(NamedTuple):
    """Spatial regions of one pyramid level, to be read."""

    folder: Place
    level: int
    regions: Sequence[Sequence[slice]]


def read_levels(asked: Sequence[LevelRegions], channel: int = 0) -> Iterator[list[NDArray[Any]] | ScanError]:
    """Voxels of regions of one channel of many levels, opened and read together: of each the regions, or why not."""
    for first in range(0, len(asked), LEVELS_AT_ONCE):
        some = asked[first : first + LEVELS_AT_ONCE]
        openings = [begin_opening(each.folder / str(each.level)) for each in some]
        readings = [
            _outcome(_begin_reading, *each, channel, opening) for each, opening in zip(some, openings, strict=True)
        ]
        yield from (reading if isinstance(reading, ScanError) else _outcome(reading) for reading in readings)


def _outcome(act: Callable[..., Result], *arguments: Any) -> Result | ScanError:
    """What a function returns, or the ScanError that it raises."""
    try:
        return act(*arguments)
    except ScanError as error:
        return error


def _begin_reading(
    folder: Place, level: int, regions: Sequence[Sequence[slice]], channel: int, opening: Callable[[], Array]
) -> Callable[[], list[NDArray[Any]]]:
    array = _opened(folder, level, opening)
    name = f"{folder.name} level {level}"
    if array.ndim == len(regions[0]):
        return functools.partial(_read, array.begin_reading(regions), name)
    if channel >= array.shape[0]:
        raise ScanError(f"it has {array.shape[0]} channels, and intensity.channel={channel} asks for another")
    reading = array.begin_reading([(slice(channel, channel + 1), *region) for region in regions])
    return lambda: [voxels[0] for voxels in _read(reading, name)]


def read_array(array: Array, regions: Sequence[Sequence[slice] | None], name: str) -> list[NDArray[Any]]:
    """Voxels of regions of an opened level, all of it where None. Raises ScanError if a chunk is damaged."""
    return _read(array.begin_reading(regions), name)


def _read(reading: Callable[[], list[NDArray[Any]]], name: str) -> list[NDArray[Any]]:
    try:
        return reading()
    except ScanError as error:
        raise ScanError(f"{name} is damaged ({error})") from None
