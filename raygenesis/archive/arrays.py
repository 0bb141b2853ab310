"""NumPy .npy and .npz with a side-car, NAME.json beside NAME.npy, that says what an array cannot."""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from raygenesis.archive.volume import Volume, check_claim, first_line
from raygenesis.errors import ScanError

# What NumPy and zipfile raise on damaged bytes.
DAMAGE = (
    ValueError, TypeError, OSError, EOFError, KeyError, OverflowError, NotImplementedError, RuntimeError, MemoryError,
    SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class SideCar(BaseModel):
    """A side-car's keys. The array's axes are taken as rising towards superior, anterior and right."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    spacing_mm: tuple[PositiveFloat, ...] = Field(min_length=2, max_length=3)  # z y x, or y x
    array: str | None = None  # the name inside an .npz of several
    modality: str = Field("", pattern="^[A-Z]{0,16}$")  # DICOM's code


def read_side_car(path: Path) -> SideCar | None:
    """The side-car of a file, None where there is none. Raises ScanError naming the key that is wrong."""
    try:
        return SideCar.model_validate(json.loads(path.with_suffix(".json").read_text()))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        fault = error.errors()[0]
        if not fault["loc"]:
            raise ScanError('its side-car (.json) must be an object such as {"spacing_mm": [1.0, 0.7, 0.7]}') from None
        key = ".".join(str(part) for part in fault["loc"])
        raise ScanError(f"its side-car (.json): {key}: {fault['msg'].lower()}") from None
    except (ValueError, OSError) as error:
        raise ScanError(f"its side-car (.json) is not readable ({type(error).__name__})") from None


def read_geometry(path: Path, fourth_axis: str) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Shape in voxels and spacing in mm (z y x, or y x) of each volume."""
    return [(volume.shape, volume.spacing_mm) for volume in read(path, fourth_axis, max_bytes=2**63)]


def read(path: Path, fourth_axis: str, max_bytes: int) -> list[Volume]:
    """The volumes of a file: one, or with fourth_axis "split" one for each index of the first axis.

    An array of one axis more than `spacing_mm` has numbers is taken as archive.fourth_axis says. Raises ScanError.
    """
    side_car = read_side_car(path)
    if side_car is None:
        raise ScanError(
            "an array without a side-car has no spacing: write a .json of the same name beside it, such as "
            '{"spacing_mm": [1.0, 0.7, 0.7]}'
        )
    ndim = len(side_car.spacing_mm)
    voxels = _load(path, side_car, max_bytes)
    if voxels.ndim not in (ndim, ndim + 1):
        raise ScanError(f"shape {voxels.shape} does not fit the {ndim} numbers of spacing_mm")
    if voxels.ndim == ndim + 1 and fourth_axis == "refuse":
        raise ScanError(
            f"shape {voxels.shape} has an axis more than spacing_mm has numbers: choose archive.fourth_axis=split "
            "(one volume for each index of the first axis) or channels"
        )
    parts = voxels if voxels.ndim == ndim + 1 and fourth_axis == "split" else [voxels]
    affine = np.diag([*side_car.spacing_mm[::-1], *[1.0] * (4 - ndim)])
    return [Volume(part, affine, ndim=ndim, modality=side_car.modality) for part in parts]


def _load(path: Path, side_car: SideCar, max_bytes: int) -> NDArray[Any]:
    try:
        if path.suffix.lower() == ".npy":
            voxels = np.load(path, mmap_mode="r", allow_pickle=False)
            check_claim(voxels.nbytes, path, max_bytes, packed=False)
            return voxels
        with zipfile.ZipFile(path) as packed:
            names = [name.removesuffix(".npy") for name in packed.namelist()]
            name = side_car.array or (names[0] if len(names) == 1 else None)
            if name not in names:
                raise ScanError(f"it holds {len(names)} arrays: name one of them as `array` in its side-car")
            check_claim(packed.getinfo(f"{name}.npy").file_size, path, max_bytes, packed=True)
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except ScanError:
        raise
    except DAMAGE as error:
        raise ScanError(f"the file is cut short or damaged, or holds Python objects ({first_line(error)})") from None
