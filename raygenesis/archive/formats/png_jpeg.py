"""PNG and JPEG radiographs, decoded by Pillow. They hold no spacing: a pixel counts as 1 mm unless a side-car says.

The picture is taken as displayed: its rows run from superior to inferior, its columns from the patient's right to left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from raygenesis.archive.formats.deep_png import read_deep_png
from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.formats.side_car import read_side_car, side_car_of
from raygenesis.archive.grid import Geometry, Grid, grid_of_steps
from raygenesis.archive.volume import Volume, check_claim
from raygenesis.errors import ScanError
from raygenesis.workspace.faults import is_of_machine

DAMAGE = (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)

# What EXIF's notes of how a camera was held ask for.
TURNS: Mapping[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr, 3: lambda pixels: np.rot90(pixels, 2), 4: np.flipud, 5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1), 7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


class PngJpeg(ScanFormat):
    """Pictures, of 8 or 16 bits a sample; transparency is no part of the image."""

    suffixes = (".png", ".jpg", ".jpeg")

    def companions(self, path: Path) -> Sequence[Path]:
        return (side_car_of(path),)

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        path = paths[0]
        with _opened(path) as picture:
            check_claim(picture.size[0] * picture.size[1], path, max_bytes, packed=True)
            pixels, is_seen_through = _pixels(path, picture)
            turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
        if turn is not None:
            pixels = turn(pixels)
        grid, modality = _grid(path, pixels.shape)
        corrections = ("transparency left out",) if is_seen_through else ()
        voxels, affine = grid.turned(pixels.swapaxes(0, 1)[:, :, None])
        return [Volume(voxels, affine, ndim=2, modality=modality, corrections=corrections, notes=grid.notes)]

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        with _opened(paths[0]) as picture:
            width, height = picture.size
            if picture.getexif().get(ExifTags.Base.Orientation, 1) > 4:  # taken with the camera on its side
                width, height = height, width
        return [_grid(paths[0], (height, width))[0].geometry]


def _pixels(path: Path, picture: Image.Image) -> tuple[NDArray[Any], bool]:
    """Pixels [rows, columns] or [rows, columns, 3] as they are stored, and whether some were transparent."""
    deep = read_deep_png(path)
    if deep is not None:
        colours = deep[..., 0] if deep.shape[2] == 2 else deep[..., :3]
        return colours, bool(deep.shape[2] in (2, 4) and deep[..., -1].min() < 65535)
    is_seen_through = "A" in picture.getbands() and np.asarray(picture.getchannel("A")).min() < 255
    if picture.mode in ("P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB")
    elif picture.mode in ("LA", "1"):
        picture = picture.convert("L")
    pixels = np.asarray(picture)
    if pixels.dtype == np.int32:  # Pillow's mode I holds 16-bit pixels
        pixels = pixels.astype(np.uint16) if pixels.min() >= 0 and pixels.max() < 65536 else pixels
    return pixels, bool(is_seen_through)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=("PNG", "JPEG"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ScanError(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except DAMAGE as error:
        if is_of_machine(error):
            raise
        raise ScanError(f"not readable as a PNG or JPEG picture ({type(error).__name__})") from None
    with picture:
        try:
            yield picture
        except DAMAGE as error:
            if isinstance(error, ScanError) or is_of_machine(error):
                raise
            raise ScanError(f"the picture is cut short or damaged ({type(error).__name__})") from None


def _grid(path: Path, shape: tuple[int, ...]) -> tuple[Grid, str]:
    """The grid of a picture of these sides as it is displayed (y x), and its modality."""
    side_car = read_side_car(path)
    if side_car is not None and len(side_car.spacing_mm) != 2:
        raise ScanError("its side-car: spacing_mm of a picture has two numbers, y x")
    rows, columns = side_car.spacing_mm if side_car else (0.0, 0.0)
    steps = columns, rows, 1.0
    grid = grid_of_steps((shape[1], shape[0], 1), np.diag([-1.0, -1.0, 1.0]), steps, (0, 0, 0), 2)
    return grid, side_car.modality if side_car else ""
