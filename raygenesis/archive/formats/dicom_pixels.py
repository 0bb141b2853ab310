"""How a DICOM file stores its pixels, and the pixels themselves. pydicom parses, GDCM decodes JPEG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from raygenesis.archive.formats.dicom_elements import MEASURED, first_value, guarded
from raygenesis.archive.volume import MAX_COMPRESSION
from raygenesis.errors import ScanError

UNCOMPRESSED = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian,
)  # fmt: skip
JPEG = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, JPEG2000Lossless, JPEG2000)
DECODED = "expected none, RLE, JPEG (not 12-bit), JPEG-LS or JPEG 2000"

# Transfer syntaxes of DICOM's own, and how their compressions are called where pydicom has a long name or none.
DICOM_PREFIX = "1.2.840.10008."
COMPRESSIONS = {
    JPEGExtended12Bit: "12-bit JPEG",
    **{UID(f"1.2.840.10008.1.2.4.{number}"): "HTJ2K" for number in range(201, 206)},
    **{UID(f"1.2.840.10008.1.2.4.{number}"): "JPEG XL" for number in range(110, 113)},
    UID("1.2.840.10008.1.2.8.1"): "deflated frames",
}

# The elements that hold pixels, and of how many bits each of theirs is where that is given.
FLOAT_PIXELS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
PIXEL_NAMES = ("PixelData", *FLOAT_PIXELS)
PADDING_NAMES = {
    "i": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "u": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "f4": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "f8": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}


@dataclass(frozen=True)
class PixelFormat:
    """How a file stores its pixels. kind: as NumPy has it, "i", "u" or "f"."""

    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    kind: str
    inverted: bool
    syntax: UID
    little_endian: bool

    @property
    def num_bytes(self) -> int:
        return self.frames * self.rows * self.columns * self.samples * self.allocated // 8

    @property
    def dtype(self) -> str:
        """Type of the pixels in the order of bytes that the file has."""
        return f"{'<' if self.little_endian else '>'}{self.kind}{self.allocated // 8}"


def pixel_format(dataset: FileDataset, file_size: int) -> PixelFormat:
    """How the pixels are stored; ScanError if that is impossible, not supported, or more than the file can hold."""
    names = ("Rows", "Columns", "BitsAllocated")
    if any(first_value((dataset,), name) is None for name in names):
        raise ScanError("the file is cut short or damaged: its header describes no image")
    rows, columns, allocated = (int(first_value((dataset,), name) or 0) for name in names)
    frames, samples = (int(first_value((dataset,), name) or 1) for name in ("NumberOfFrames", "SamplesPerPixel"))
    stored = int(first_value((dataset,), "BitsStored") or allocated)
    high = dataset.get("HighBit")
    high = stored - 1 if high is None else int(high)
    kind = _kind(dataset, allocated)
    if not (0 < rows <= 2**16 and 0 < columns <= 2**16 and frames > 0):
        raise ScanError(f"an image of {frames} × {rows} × {columns} pixels is impossible")
    if kind != "f" and (allocated not in (8, 16, 32) or not 0 < stored <= high + 1 <= allocated):
        raise ScanError(f"pixels of {stored} in {allocated} bits are not supported: expected up to 8, 16 or 32 bits")
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if not photometric.startswith({1: ("MONOCHROME",), 3: ("RGB", "YBR")}.get(samples, ("none",))):
        raise ScanError("the image is neither grey nor RGB: its photometric interpretation is not supported")
    is_measured = kind == "f" or first_value((dataset,), "Modality") in MEASURED
    inverted = photometric == "MONOCHROME1" and not is_measured
    _, little = dataset.original_encoding
    syntax = syntax_of(dataset)
    check_syntax(syntax, stored)
    found = PixelFormat(
        frames, rows, columns, samples, allocated, stored, high, kind, inverted, syntax, bool(little)
    )  # fmt: skip
    packed = syntax.is_encapsulated or syntax.is_deflated
    if found.num_bytes > file_size * (MAX_COMPRESSION if packed else 1):
        raise ScanError(f"the header claims {found.num_bytes:,} bytes of pixels, more than the file can hold")
    return found


def _kind(dataset: Dataset, allocated: int) -> str:
    """NumPy's kind of the pixels: floats where there are such, or where the header describes no integers."""
    integer = ("PixelData", "PixelRepresentation", "BitsStored")
    is_float = allocated in FLOAT_PIXELS.values() and not any(name in dataset for name in integer)
    if is_float or ("PixelData" not in dataset and any(name in dataset for name in FLOAT_PIXELS)):
        return "f"
    return "i" if dataset.get("PixelRepresentation") else "u"


def syntax_of(dataset: FileDataset) -> UID:
    """The transfer syntax of a file, guessed from how it was parsed where it does not say."""
    implicit, little = dataset.original_encoding
    guess = (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian) if little else ExplicitVRBigEndian
    return UID(dataset.file_meta.get("TransferSyntaxUID") or guess)


def check_syntax(syntax: UID, stored: int = 8) -> None:
    """Raise ScanError, naming it, for a transfer syntax that is not read here for pixels of so many bits."""
    is_12_bit = syntax == JPEGExtended12Bit and stored > 8
    if syntax in (*UNCOMPRESSED, RLELossless, *JPEG) and not is_12_bit:
        return
    if not syntax.is_valid:
        raise ScanError("the header is cut short or damaged: its transfer syntax is no UID")
    if not syntax.startswith(DICOM_PREFIX):
        raise ScanError(f"its transfer syntax, {syntax}, is a maker's own and not supported: {DECODED}")
    raise ScanError(f"its compression, {COMPRESSIONS.get(syntax, syntax.name)}, is not supported: {DECODED}")


def decode_pixels(dataset: Dataset, stored: PixelFormat) -> NDArray[Any]:
    """Stored values [frames, rows, columns], or [frames, rows, columns, 3] as RGB, in native byte order."""
    shape = (stored.frames, stored.rows, stored.columns, *([stored.samples] * (stored.samples > 1)))
    with guarded("the pixel data is cut short or damaged"):
        names = [name for name, bits in FLOAT_PIXELS.items() if bits == stored.allocated]
        data = dataset.get(names[0] if stored.kind == "f" else "PixelData")
        if not data or (stored.kind == "f" and stored.syntax.is_encapsulated):
            raise ScanError("the pixel data is missing or cut short")
        is_swapped = not stored.little_endian and stored.allocated == 8
        if stored.syntax.is_encapsulated or stored.samples > 1 or is_swapped:
            pixels, _ = get_decoder(stored.syntax).as_array(dataset, decoding_plugin=_decoder(stored))
            return pixels.reshape(shape)
        if len(data) < stored.num_bytes:
            raise ScanError(f"the pixel data is cut short: {len(data):,} of {stored.num_bytes:,} bytes")
        pixels = np.frombuffer(data, stored.dtype, math.prod(shape)).reshape(shape)
    pixels = _used_bits(pixels, stored)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _used_bits(pixels: NDArray[Any], stored: PixelFormat) -> NDArray[Any]:
    """Up to the highest bit and down again: unused bits go, and the sign is extended."""
    if stored.stored == stored.allocated or stored.kind == "f":
        return pixels
    return (pixels << (stored.allocated - 1 - stored.high)) >> (stored.allocated - stored.stored)


def padding(dataset: Dataset, stored: PixelFormat) -> NDArray[Any] | None:
    """The stored values [least, most], in any order, of pixels that are no image; None where the file has no such."""
    size = stored.allocated // 8
    names = PADDING_NAMES[stored.kind if stored.kind != "f" else f"f{size}"]
    value, limit = (first_value((dataset,), name) for name in names)
    if value is None or stored.samples > 1:
        return None
    ends = (value, value if limit is None else limit)
    if stored.kind == "f":
        return np.array(ends, f"f{size}")
    # Its type is often the other one, of the same bits.
    bits = [int(number) % 2**stored.allocated for number in ends]
    return _used_bits(np.array(bits, f"u{size}").view(f"{stored.kind}{size}"), stored)


def _decoder(stored: PixelFormat) -> str:
    """pydicom's name of the decoder to use (any that it finds could carry a licence that forbids much)."""
    if not stored.syntax.is_encapsulated:
        return ""
    if stored.syntax == RLELossless:
        return "pydicom"
    import gdcm

    for silence in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        silence()
    return "gdcm"
