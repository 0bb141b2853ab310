"""PNG and JPEG radiographs, decoded by Pillow. They hold no spacing: a pixel counts as 1 mm unless a side-car says.

The picture is taken as displayed: its rows run from superior to inferior, its columns from the patient's right to left.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from raygenesis.archive.formats.scan_format import FourthAxis, ScanFormat
from raygenesis.archive.formats.side_car import read_side_car, side_car_of
from raygenesis.archive.volume import Geometry, Volume, canonical, check_claim, is_transient
from raygenesis.errors import ScanError

DAMAGE = (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)


class PngJpeg(ScanFormat):
    """Pictures; equal colour channels are read as grey."""

    suffixes = (".png", ".jpg", ".jpeg")

    def companions(self, path: Path) -> Sequence[Path]:
        return (side_car_of(path),)

    def read(self, paths: Sequence[Path], fourth_axis: FourthAxis, max_bytes: int) -> list[Volume]:
        path = paths[0]
        with _opened(path) as picture:
            check_claim(picture.size[0] * picture.size[1], path, max_bytes, packed=True)
            picture = ImageOps.exif_transpose(picture)
            if picture.mode in ("P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"):
                picture = picture.convert("RGB")
            elif picture.mode in ("LA", "1"):
                picture = picture.convert("L")
            pixels = np.asarray(picture)
        if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]
        if pixels.dtype == np.int32:  # Pillow's mode I holds 16-bit pixels
            pixels = pixels.astype(np.uint16) if pixels.min() >= 0 and pixels.max() < 65536 else pixels
        spacing, modality, notes = _facts(path)
        affine = np.diag([-spacing[1], -spacing[0], 1.0, 1.0])
        stored = np.moveaxis(pixels[None], (0, 1, 2), (2, 1, 0))
        voxels, affine = canonical(stored, affine, 2)
        return [Volume(voxels, affine, ndim=2, modality=modality, corrections=notes)]

    def read_geometry(self, paths: Sequence[Path], fourth_axis: FourthAxis) -> list[Geometry]:
        with _opened(paths[0]) as picture:
            width, height = picture.size
            if picture.getexif().get(ExifTags.Base.Orientation, 1) > 4:  # taken with the camera on its side
                width, height = height, width
        return [Geometry((height, width), _facts(paths[0])[0])]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=("PNG", "JPEG"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ScanError(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except DAMAGE as error:
        if is_transient(error):
            raise
        raise ScanError(f"not readable as a PNG or JPEG picture ({type(error).__name__})") from None
    with picture:
        try:
            yield picture
        except DAMAGE as error:
            if isinstance(error, ScanError) or is_transient(error):
                raise
            raise ScanError(f"the picture is cut short or damaged ({type(error).__name__})") from None


def _facts(path: Path) -> tuple[tuple[float, float], str, tuple[str, ...]]:
    """Spacing in mm (y x) of the picture as displayed, modality, and what was assumed."""
    side_car = read_side_car(path)
    if side_car is None:
        return (1.0, 1.0), "", ("no pixel spacing: 1 mm assumed",)
    if len(side_car.spacing_mm) != 2:
        raise ScanError("its side-car: spacing_mm of a picture has two numbers, y x")
    return (side_car.spacing_mm[0], side_car.spacing_mm[1]), side_car.modality, ()
