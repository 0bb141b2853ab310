"""PNGs of 16 bits with colours or transparency, which Pillow would cut to 8 bits."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from raygenesis.errors import ScanError

# Where a PNG's header has its bits a sample and its kind of colours.
SIGNATURE, DEPTH, COLOURS, CHECKSUM, END = b"\x89PNG\r\n\x1a\n", 24, 25, 29, 33
RGB, GREY_ALPHA, RGBA = 2, 4, 6


def read_deep_png(path: Path) -> NDArray[np.uint16] | None:
    """The pixels [rows, columns(, samples)] of a PNG of more than one sample of 16 bits; None of any other picture.

    Samples are grey and alpha, RGB, or RGBA. Raises ScanError for a damaged one.
    """
    with path.open("rb") as file:
        head = file.read(END)
        if len(head) < END or not head.startswith(SIGNATURE) or head[DEPTH] != 16:
            return None
        if head[COLOURS] == GREY_ALPHA:
            return _grey_and_alpha(head, file.read())
    if head[COLOURS] not in (RGB, RGBA):
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("PNGImageIO")
    try:
        return np.asarray(sitk.GetArrayFromImage(reader.Execute()), np.uint16)
    except RuntimeError:
        raise ScanError("the picture is cut short or damaged (SimpleITK cannot decode it)") from None


def _grey_and_alpha(head: bytes, rest: bytes) -> NDArray[np.uint16]:
    """Such a file has the bytes of one of 8 bits and four samples, which Pillow reads whole."""
    header = head[len(SIGNATURE) + 4 : DEPTH] + bytes((8, RGBA)) + head[COLOURS + 1 : CHECKSUM]
    renamed = head[: len(SIGNATURE) + 4] + header + struct.pack(">I", zlib.crc32(header)) + rest
    with Image.open(io.BytesIO(renamed), formats=("PNG",)) as picture:
        return np.asarray(picture).view(">u2").astype(np.uint16)
