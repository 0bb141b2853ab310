"""Reading one DICOM file: its frames, and what describes each. pydicom parses, GDCM decodes JPEG."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.filereader import read_dataset as parse_dataset
from pydicom.pixels import get_decoder
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from raygenesis.archive.formats.dicom_values import ValueTable, unit_words, valid_pixels, value_table
from raygenesis.archive.formats.regular_files import require_regular
from raygenesis.archive.formats.slices import Plane
from raygenesis.archive.volume import MAX_COMPRESSION, is_transient
from raygenesis.errors import ScanError

# What pydicom logs quotes values of the file.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

HEAD_BYTES = 132

# Of a deflated file so many bytes are unpacked to read its header, which is in front of the pixels.
MAX_HEADER_BYTES = 2**24
PIXEL_GROUP = 0x7FE0

JPEG = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)

# Stored values of these are measurements, whatever way round they are displayed.
MEASURED = {"CT", "PT"}

NUMBERS = (
    "MagneticFieldStrength", "KVP", "SliceThickness", "SpacingBetweenSlices", "EchoTime", "RepetitionTime",
    "InversionTime", "FlipAngle", "BitsStored",
)  # fmt: skip
CODES = (
    "Modality", "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "BodyPartExamined", "ViewPosition",
    "PhotometricInterpretation",
)  # fmt: skip
WORDS = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel")
CODE = re.compile(r"[A-Z0-9 _]{1,16}")
WORD = re.compile(r"[A-Za-z0-9 \-_.()/]+")
LONGEST_TAG = 64
ENHANCED_NAMES = {"EchoTime": "EffectiveEchoTime"}

# What tells time points and echoes at one position apart; an enhanced file has other names for the first three.
TIME_ORDER = (
    ("TemporalPositionIdentifier", "TemporalPositionIndex"), ("EchoTime", "EffectiveEchoTime"),
    ("AcquisitionNumber", "FrameAcquisitionNumber"), ("InstanceNumber",),
)  # fmt: skip

# Pixel spacing, from the best to the last resort: in the patient, at the detector, of the scanned film.
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

SLICE_NAMES = (
    *NUMBERS, *CODES, *WORDS, *SPACINGS, *(name for names in TIME_ORDER for name in names), "SOPInstanceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PlanarConfiguration", "BitsAllocated", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence",
    "RealWorldValueMappingSequence",
)  # fmt: skip
SLICE_TAGS = [Tag(name) for name in SLICE_NAMES]

# Where an enhanced multi-frame file keeps what a classic one has at its top.
FUNCTIONAL_GROUPS = (
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence",
    "FrameContentSequence", "MREchoSequence", "MRTimingAndRelatedParametersSequence", "CTReconstructionSequence",
    "CTXRayDetailsSequence", "RealWorldValueMappingSequence",
)  # fmt: skip


@dataclass(frozen=True)
class _PixelFormat:
    """How a file stores its pixels."""

    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    inverted: bool
    syntax: UID
    little_endian: bool

    @property
    def num_bytes(self) -> int:
        return self.frames * self.rows * self.columns * self.samples * self.allocated // 8


@dataclass(frozen=True)
class Frames:
    """The frames of one file: its data set, how it stores pixels, and the data sets that describe each frame.

    path: of the file. table: of values, where its pixels are numbers in one.
    """

    dataset: FileDataset
    stored: _PixelFormat
    groups: Sequence[tuple[Dataset, ...]]
    path: Path
    table: ValueTable | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the decoded pixels."""
        return self.stored.num_bytes


@dataclass(frozen=True)
class Slice:
    """One frame. `groups` are the data sets that describe it, most specific first; `plane` is None without a place.

    valid: which pixels are image rather than padding; None where all are, or they are not read. corrections: what was
    done to its values, in words.
    """

    groups: tuple[Dataset, ...]
    identity: tuple[str, int]
    shape: tuple[int, int]
    plane: Plane | None
    rescale: tuple[float, float]
    inverted: bool
    pixels: Any  # NDArray [rows, columns, ...], None where they are not read
    valid: NDArray[np.bool_] | None
    corrections: tuple[str, ...]


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes or more are DICOM: its mark, or without one a plausible first element."""
    if head[128:132] == b"DICM":
        return True
    order: Literal["little", "big"] = "little" if head[1:2] == b"\0" else "big"
    group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
    if group not in (0x0002, 0x0008) or element > 0x0022 or len(head) < 8:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or (order == "little" and int.from_bytes(head[4:8], order) <= 256)


@contextmanager
def guarded(fault: str) -> Iterator[None]:
    """Keep pydicom from warning, and turn what it raises (anything) into a ScanError that quotes no value.

    What may pass is raised as it is.
    """
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            yield
        except ScanError:
            raise
        except Exception as error:
            if is_transient(error):
                raise
            raise ScanError(f"{fault} ({type(error).__name__})") from None


def read_dataset(path: Path, tags: Sequence[BaseTag], *, pixels: bool) -> FileDataset:
    """The elements of a file under these tags; the pixels of a deflated file are left out (`_inflated`)."""
    require_regular(path)
    with guarded("the file is cut short or damaged"), path.open("rb") as file:
        if not looks_like_dicom(file.read(HEAD_BYTES)):
            raise ScanError("not a DICOM file")
        if _meta_of(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            return _inflated(file, tags, MAX_HEADER_BYTES)  # dcmread would unpack it all
        file.seek(0)
        return dcmread(file, force=True, stop_before_pixels=not pixels, specific_tags=list(tags))


def _meta_of(file: BinaryIO) -> FileMetaDataset:
    """The elements that say how a file is encoded, as dcmread finds them; what follows is next in the file."""
    file.seek(0)
    read_preamble(file, force=True)
    return _read_file_meta_info(file)


def _inflated(file: BinaryIO, tags: Sequence[BaseTag], max_bytes: int, *, pixels: bool = False) -> FileDataset:
    """The elements of a deflated file under these tags, of which so many bytes are unpacked at the most.

    Raises ScanError where the pixels are asked for and more is packed in the file.
    """
    meta, inflator = _meta_of(file), zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflator.decompress(file.read() if pixels else file.read(max_bytes), max_bytes)
    if pixels and not inflator.eof and inflator.decompress(inflator.unconsumed_tail, 1):
        raise ScanError("the file holds more bytes than its header describes")
    stop = None if pixels else lambda tag, vr, length: tag >> 16 == PIXEL_GROUP
    elements = parse_dataset(
        io.BytesIO(content), is_implicit_VR=False, is_little_endian=True, stop_when=stop, specific_tags=list(tags)
    )
    found = FileDataset(file, elements, file_meta=meta, is_implicit_VR=False, is_little_endian=True)
    found.set_original_encoding(False, True, elements._character_set)
    return found


def first_value(groups: Sequence[Dataset], *names: str) -> Any:
    """The first value under any of the names, None if all are missing or empty."""
    for group in groups:
        for name in names:
            value = group.get(name)
            if value is not None and value != "":
                return value
    return None


def floats(groups: Sequence[Dataset], name: str, count: int) -> tuple[float, ...] | None:
    value = first_value(groups, name)
    if value is None:
        return None
    numbers = tuple(map(float, [value] if count == 1 else value))
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ScanError(f"{name} is not {count} finite number{'s' * (count > 1)}")
    return numbers


def read_slices(path: Path) -> list[Slice]:
    """The frames of one file, without their pixels."""
    frames = read_frames(path, pixels=False)
    return _slices(frames, [None] * len(frames.groups), None)


def read_frames(path: Path, *, pixels: bool) -> Frames:
    """What a file holds, its pixels not decoded yet, and those of a deflated file not unpacked either."""
    dataset = read_dataset(path, SLICE_TAGS, pixels=pixels)
    with guarded("the header is damaged"):
        stored = _format(dataset, path.stat().st_size)
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
        if stored.frames > 1 and len(per_frame) != stored.frames:
            raise ScanError(f"its {stored.frames:,} frames do not all say where they lie")
        shared = tuple(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
        top = (*(dataset.get("RealWorldValueMappingSequence") or ())[:1], dataset)
        chains = [(*_functional_groups((frame, *shared)), *top) for frame in per_frame] or [top]
        table = value_table(dataset, stored.signed, stored.little_endian) if stored.samples == 1 else None
    return Frames(dataset, stored, chains, path, table)


def decode(frames: Frames) -> list[Slice]:
    """The frames of one file with their pixels."""
    dataset: Dataset = frames.dataset
    if frames.stored.syntax == DeflatedExplicitVRLittleEndian:
        with guarded("the pixel data is cut short or damaged"), frames.path.open("rb") as file:
            dataset = _inflated(file, SLICE_TAGS, frames.num_bytes + MAX_HEADER_BYTES, pixels=True)
    pixels = _decode(dataset, frames.stored)
    with guarded("the header is damaged"):
        valid = valid_pixels(pixels, _padding(frames.dataset, frames.stored))
    return _slices(frames, list(pixels if frames.table is None else frames.table.apply(pixels)), valid)


def _slices(frames: Frames, pixels: Sequence[Any], valid: NDArray[np.bool_] | None) -> list[Slice]:
    stored = frames.stored
    found = []
    with guarded("the header is damaged"):
        uid, shape = str(frames.dataset.get("SOPInstanceUID", "")), (stored.rows, stored.columns)
        for number, (groups, one) in enumerate(zip(frames.groups, pixels, strict=True)):
            inside = None if valid is None else valid[number]
            plane, (rescale, words) = _plane(groups, shape), _rescale(groups, frames)
            found.append(Slice(groups, (uid, number), shape, plane, rescale, stored.inverted, one, inside, words))
    return found


def _functional_groups(containers: Sequence[Dataset]) -> list[Dataset]:
    found = [container.get(name) for container in containers for name in FUNCTIONAL_GROUPS]
    return [sequence[0] for sequence in found if sequence]


def _format(dataset: FileDataset, file_size: int) -> _PixelFormat:
    """How the pixels are stored; ScanError if that is impossible, or more than the file can hold."""
    names = ("Rows", "Columns", "BitsAllocated")
    if any(first_value((dataset,), name) is None for name in names):
        raise ScanError("the file is cut short or damaged: its header describes no image")
    rows, columns, allocated = (int(first_value((dataset,), name) or 0) for name in names)
    frames, samples = (int(first_value((dataset,), name) or 1) for name in ("NumberOfFrames", "SamplesPerPixel"))
    stored = int(first_value((dataset,), "BitsStored") or allocated)
    high = dataset.get("HighBit")
    high = stored - 1 if high is None else int(high)
    if not (0 < rows <= 2**16 and 0 < columns <= 2**16 and frames > 0):
        raise ScanError(f"an image of {frames} × {rows} × {columns} pixels is impossible")
    if allocated not in (8, 16, 32) or not 0 < stored <= high + 1 <= allocated:
        raise ScanError(f"pixels of {stored} in {allocated} bits are not supported: expected up to 8, 16 or 32 bits")
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if not photometric.startswith({1: ("MONOCHROME",), 3: ("RGB", "YBR")}.get(samples, ("none",))):
        raise ScanError("the image is neither grey nor RGB: its photometric interpretation is not supported")
    inverted = photometric == "MONOCHROME1" and first_value((dataset,), "Modality") not in MEASURED
    implicit, little = dataset.original_encoding
    guess = (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian) if little else ExplicitVRBigEndian
    syntax = dataset.file_meta.get("TransferSyntaxUID") or guess
    signed = bool(dataset.get("PixelRepresentation"))
    found = _PixelFormat(
        frames, rows, columns, samples, allocated, stored, high, signed, inverted, UID(syntax), bool(little)
    )  # fmt: skip
    packed = found.syntax.is_encapsulated or found.syntax.is_deflated
    if found.num_bytes > file_size * (MAX_COMPRESSION if packed else 1):
        raise ScanError(f"the header claims {found.num_bytes:,} bytes of pixels, more than the file can hold")
    return found


def _decode(dataset: Dataset, stored: _PixelFormat) -> NDArray[Any]:
    """Stored values [frames, rows, columns], or [frames, rows, columns, 3] as RGB, in native byte order."""
    shape = (stored.frames, stored.rows, stored.columns, *([stored.samples] * (stored.samples > 1)))
    with guarded("the pixel data is cut short or damaged"):
        data = dataset.get("PixelData")
        if not data:
            raise ScanError("the pixel data is missing or cut short")
        if stored.syntax.is_encapsulated or stored.samples > 1 or not (stored.little_endian or stored.allocated > 8):
            pixels, _ = get_decoder(stored.syntax).as_array(dataset, decoding_plugin=_decoder(stored))
            return pixels.reshape(shape)
        if len(data) < stored.num_bytes:
            raise ScanError(f"the pixel data is cut short: {len(data):,} of {stored.num_bytes:,} bytes")
        kind = f"{'<' if stored.little_endian else '>'}{'i' if stored.signed else 'u'}{stored.allocated // 8}"
        pixels = np.frombuffer(data, kind, math.prod(shape)).reshape(shape)
    pixels = _used_bits(pixels, stored)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _used_bits(pixels: NDArray[Any], stored: _PixelFormat) -> NDArray[Any]:
    """Up to the highest bit and down again: unused bits go, and the sign is extended."""
    if stored.stored == stored.allocated:
        return pixels
    return (pixels << (stored.allocated - 1 - stored.high)) >> (stored.allocated - stored.stored)


def _padding(dataset: Dataset, stored: _PixelFormat) -> NDArray[Any] | None:
    """The stored values [least, most], in any order, of pixels that are no image; None where the file has no such."""
    value = first_value((dataset,), "PixelPaddingValue")
    if value is None or stored.samples > 1:
        return None
    limit = first_value((dataset,), "PixelPaddingRangeLimit")
    kind = f"{'i' if stored.signed else 'u'}{stored.allocated // 8}"
    # Its type is often the other one, of the same bits.
    bits = [int(number) % 2**stored.allocated for number in (value, value if limit is None else limit)]
    return _used_bits(np.array(bits, f"u{stored.allocated // 8}").view(kind), stored)


def _decoder(stored: _PixelFormat) -> str:
    """pydicom's name of the decoder to use (any that it finds could carry a licence that forbids much)."""
    if not stored.syntax.is_encapsulated:
        return ""
    if stored.syntax == RLELossless:
        return "pydicom"
    if stored.syntax not in JPEG or (stored.syntax == JPEGExtended12Bit and stored.stored > 8):
        raise ScanError("its compression is not supported: expected RLE, JPEG (not 12-bit), JPEG-LS or JPEG 2000")
    import gdcm

    for silence in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        silence()
    return "gdcm"


def _plane(groups: Sequence[Dataset], shape: tuple[int, int]) -> Plane | None:
    position, orientation = floats(groups, "ImagePositionPatient", 3), floats(groups, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        return None
    spacing = floats(groups, "PixelSpacing", 2)
    if spacing is None:
        raise ScanError("the slices have no pixel spacing")
    return Plane(position, orientation, spacing, shape)


def _rescale(groups: Sequence[Dataset], frames: Frames) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Slope and intercept from the pixels to real values, for MONOCHROME1 those of the inverted image; and words.

    Where there is a real-world mapping it counts, but for CT and PET, whose rescaling gives the values of their kind.
    """
    stored, table = frames.stored, frames.table
    words: tuple[str, ...] = ()
    prefix = "Rescale"
    if (mapped := _mapping(groups)) is not None:
        prefix, words = "RealWorldValue", (f"real-world mapping applied{unit_words(mapped)}",)
    slope = (floats(groups, f"{prefix}Slope", 1) or (1.0,))[0]
    intercept = (floats(groups, f"{prefix}Intercept", 1) or (0.0,))[0]
    if table is not None:
        slope, intercept, words = 1.0, 0.0, ("modality LUT applied",)
    if slope == 0:
        raise ScanError("a rescale slope of 0 gives no values")
    if stored.inverted:
        bits, signed = (table.bits, False) if table else (stored.stored, stored.signed)
        return (-slope, intercept + slope * (-1 if signed else 2**bits - 1)), words
    return (slope, intercept), words


def _mapping(groups: Sequence[Dataset]) -> Dataset | None:
    """The real-world mapping that counts, None where there is none, or none by a slope."""
    if first_value(groups, "Modality") in MEASURED:
        return None
    return next((group for group in groups if first_value((group,), "RealWorldValueSlope") is not None), None)


def tags_of(groups: Sequence[Dataset]) -> Mapping[str, str]:
    """The acquisition facts that identify nobody, as far as they are what they ought to be."""
    found = {}
    for name in (*NUMBERS, *CODES, *WORDS):
        with guarded("the header is damaged"):
            text = _plain_text(name, first_value(groups, name, ENHANCED_NAMES.get(name, name)))
        if text and len(text) <= LONGEST_TAG:
            found[name] = text
    return found


def _plain_text(name: str, value: Any) -> str:
    """A tag's value as text; empty if it is missing or not what the tag ought to hold."""
    if value is None:
        return ""
    if name in NUMBERS:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return ""
        return f"{number:g}" if math.isfinite(number) else ""
    parts = [value] if isinstance(value, str) else list(map(str, value))
    pattern = CODE if name in CODES else WORD
    return "\\".join(parts) if all(pattern.fullmatch(part) for part in parts) else ""
