"""MedMNIST 3D: one `.npz` of small volumes and their classes, such as `adrenalmnist3d_64.npz`."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from raygenesis.archive.grid import no_voxel_size
from raygenesis.archive.volume import Volume, validate
from raygenesis.errors import ScanError
from raygenesis.transfer.examples import CLASSIFICATION, TEST, TRAIN, VALIDATION, Example, Problem, Target, times
from raygenesis.transfer.targets.listing import files_below, require_examples

SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
DAMAGE = (OSError, ValueError, EOFError, LookupError, zlib.error, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class PackedImage:
    """One volume of an `.npz`: that of a number in `<part>_images`. Axes are taken as z y x, voxels as 1 mm."""

    path: Path
    part: str
    number: int

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self) -> Volume:
        try:
            shape, packed = _packed(self.path, self.path.stat().st_mtime_ns, self.part)
            voxels = np.frombuffer(zlib.decompress(packed[self.number]), np.uint8).reshape(shape)
        except DAMAGE as error:
            raise ScanError(f"{self.path}: {self.part}_images cannot be read ({error})") from None
        return validate(Volume(voxels, np.eye(4), notes=no_voxel_size(3, 3)))


def read(folder: Path, *, classes: tuple[str, ...] = ("normal", "abnormal")) -> Target:
    """The volumes of the one `.npz` in a folder (or of that file), split as published. Raises ScanError.

    The owners name no patients, so each volume is a subject. The window is 0 to 255, or to 1 where the first volume
    holds nothing above.
    """
    path = _file(folder)
    examples, problems, brightest = [], [], 0
    for part, split in SPLITS.items():
        labels, shape, first = _part(path, part)
        if len(labels) != shape[0]:
            raise ScanError(f"{path}: {shape[0]} {part}_images and {len(labels)} {part}_labels: give the owners' file")
        brightest = max(brightest, first)
        for number, value in enumerate(labels.tolist()):
            name = f"{part}/{number:05d}"
            if value in range(len(classes)):
                image = PackedImage(path, part, number)
                examples.append(Example(name, name, image, value=int(value), split=split))
            else:
                problems.append(Problem(name, f"class {value} is not one of 0 to {len(classes) - 1}"))
    window = (0.0, 1.0 if brightest <= 1 else 255.0)
    return require_examples(folder, Target(CLASSIFICATION, 3, classes, tuple(examples), tuple(problems), window))


def _file(folder: Path) -> Path:
    if folder.suffix == ".npz" and folder.is_file():
        return folder
    found = files_below(folder, ".npz")
    if len(found) != 1:
        raise ScanError(f"{folder} holds {len(found)} .npz files: give the one to be read")
    return found[0]


def _part(path: Path, part: str) -> tuple[NDArray[np.integer], tuple[int, ...], int]:
    """Classes [n], the images' shape [n, z, y, x] and the highest value of the first image."""
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open(f"{part}_labels.npy") as file:
                labels = npy.read_array(file, allow_pickle=False)
            with archive.open(f"{part}_images.npy") as file:
                shape = _shape(file)
                first = np.frombuffer(file.read(int(np.prod(shape[1:]))), np.uint8)
    except DAMAGE as error:
        raise ScanError(f"{path}: {part}_images and {part}_labels cannot be read ({error})") from None
    if labels.dtype.kind not in "iu" or labels.size != labels.shape[0]:
        raise ScanError(f"{path}: {part}_labels of {times(labels.shape)} are not one whole number for each image")
    return labels.ravel(), shape, int(first.max(initial=0))


def _shape(file: IO[bytes]) -> tuple[int, ...]:
    """Shape [n, z, y, x] by the head of an .npy, which is read; what follows are the images. Raises ValueError."""
    version = npy.read_magic(file)
    read_head = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_head(file)
    if len(shape) != 4 or fortran or dtype != np.uint8:
        raise ValueError(f"{times(shape)} values of {dtype} are not volumes of uint8")
    return shape


@lru_cache(maxsize=len(SPLITS))
def _packed(path: Path, mtime_ns: int, part: str) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
    """Shape of a volume, and each one compressed by itself.

    The file's one stream can only be read from its start: read once, and kept as small as the file.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{part}_images.npy") as file:
        count, *shape = _shape(file)
        size = int(np.prod(shape))
        images = (file.read(size) for _ in range(count))
        return tuple(shape), tuple(zlib.compress(_whole(image, size), 1) for image in images)


def _whole(image: bytes, size: int) -> bytes:
    if len(image) < size:
        raise EOFError("it is cut short")
    return image
