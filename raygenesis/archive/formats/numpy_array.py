"""NumPy arrays (.npy, .npz), with a side-car that has their spacing."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.formats.side_car import SideCar, read_side_car, side_car_of
from raygenesis.archive.grid import Geometry, Grid, grid_of_steps
from raygenesis.archive.volume import Volume, check_claim, first_line
from raygenesis.errors import ScanError
from raygenesis.workspace.faults import is_of_machine

# What NumPy and zipfile raise on damaged bytes.
DAMAGE = (
    ValueError, TypeError, OSError, EOFError, KeyError, OverflowError, NotImplementedError, RuntimeError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

# A header has no more, and so no more is unpacked to read it.
HEADER_BYTES = 65536


class NumpyArray(ScanFormat):
    """Arrays [z, y, x] or [y, x]; one more axis, the first, is taken as `archive.fourth_axis` says."""

    suffixes = (".npy", ".npz")

    def companions(self, path: Path) -> Sequence[Path]:
        return (side_car_of(path),)

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        path = paths[0]
        side_car = _side_car(path)
        is_packed = path.suffix.lower() == ".npz"
        with _opened(path, side_car) as file:
            shape, dtype = _header(file)
            _num_volumes(shape, side_car, fourth_axis)  # raises for what is none
            check_claim(math.prod(shape) * dtype.itemsize, path, max_bytes, is_packed)
            file.seek(0)
            voxels = npy.read_array(file) if is_packed else np.load(path, mmap_mode="r")
        grid = _grid(shape, side_car)
        parts = voxels if fourth_axis == "split" and voxels.ndim > grid.ndim else [voxels]
        return [Volume(part, grid.affine, ndim=grid.ndim, modality=side_car.modality) for part in parts]

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        side_car = _side_car(paths[0])
        with _opened(paths[0], side_car) as file:
            shape, _ = _header(file)
        return [_grid(shape, side_car).geometry] * _num_volumes(shape, side_car, fourth_axis)


def _grid(shape: Sequence[int], side_car: SideCar) -> Grid:
    """The grid of an array's last axes, which rise towards superior, anterior and right from a centre at 0."""
    ndim = len(side_car.spacing_mm)
    sides, steps = [1, 1, 1], np.ones(3)
    sides[:ndim], steps[:ndim] = shape[-ndim:][::-1], side_car.spacing_mm[::-1]
    return grid_of_steps(sides, np.eye(3), steps, (0, 0, 0), ndim)


def _side_car(path: Path) -> SideCar:
    side_car = read_side_car(path)
    if side_car is None:
        raise ScanError(
            "an array without a side-car has no spacing: write a .json of the same name beside it, such as "
            '{"spacing_mm": [1.0, 0.7, 0.7]}'
        )
    return side_car


@contextmanager
def _opened(path: Path, side_car: SideCar) -> Iterator[IO[bytes]]:
    """The bytes of the array's .npy: the file's own, or those packed in it."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(path) as packed:
                names = [name.removesuffix(".npy") for name in packed.namelist()]
                name = side_car.array or (names[0] if len(names) == 1 else None)
                if name not in names:
                    raise ScanError(f"it holds {len(names)} arrays: name one of them as `array` in its side-car")
                with packed.open(f"{name}.npy") as file:
                    yield file
    except DAMAGE as error:
        if isinstance(error, ScanError) or is_of_machine(error):
            raise
        raise ScanError(f"the file is cut short or damaged, or holds Python objects ({first_line(error)})") from None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in a .npy."""
    begin = io.BytesIO(file.read(HEADER_BYTES))
    version = npy.read_magic(begin)
    if version > (2, 0):
        raise ScanError("voxels that are records are not grey values: expected integers or floats")
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(begin)
    return shape, dtype


def _num_volumes(shape: tuple[int, ...], side_car: SideCar, fourth_axis: FourthAxis) -> int:
    """How many volumes an array is. Raises ScanError for a shape that is none."""
    ndim = len(side_car.spacing_mm)
    if len(shape) not in (ndim, ndim + 1):
        raise ScanError(f"shape {shape} does not fit the {ndim} numbers of spacing_mm")
    if any(side < 1 for side in shape):
        raise ScanError(f"shape {shape} holds no voxels")
    if len(shape) == ndim:
        return 1
    if fourth_axis == "refuse":
        raise ScanError(
            f"shape {shape} has an axis more than spacing_mm has numbers: choose archive.fourth_axis=split "
            "(one volume for each index of the first axis) or channels"
        )
    return shape[0] if fourth_axis == "split" else 1
