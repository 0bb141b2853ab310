"""Reading one DICOM file: its frames, and what describes each. pydicom parses, GDCM decodes JPEG."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.filereader import read_dataset as parse_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from raygenesis.archive.formats.dicom_elements import MEASURED, first_value, floats, guarded
from raygenesis.archive.formats.dicom_pixels import (
    PADDING_NAMES,
    PIXEL_NAMES,
    PixelFormat,
    decode_pixels,
    padding,
    pixel_format,
)
from raygenesis.archive.formats.dicom_tags import CODES, NUMBERS, WORDS
from raygenesis.archive.formats.dicom_values import ValueTable, unit_words, valid_pixels, value_table
from raygenesis.archive.formats.regular_files import require_regular
from raygenesis.archive.formats.slices import Plane
from raygenesis.errors import ScanError
from raygenesis.workspace.faults import is_of_machine

HEAD_BYTES = 132

# Of a deflated file so many bytes are unpacked to read its header, which is in front of the pixels.
MAX_HEADER_BYTES = 2**24
PIXEL_GROUP = 0x7FE0

# What may tell slices at one place apart, in the order of the volumes; enhanced files have names of their own for some.
DISTINCTIONS = {
    "time point": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "echo time": ("EchoTime", "EffectiveEchoTime"),
    "acquisition": ("AcquisitionNumber", "FrameAcquisitionNumber"),
    "trigger delay": ("TriggerTime", "NominalCardiacTriggerDelayTime"),
    "inversion time": ("InversionTime", "InversionTimes"),
    "b-value": ("DiffusionBValue",),
    "frame time": ("FrameReferenceTime",),
    "image type": ("ImageType", "FrameType"),
}
DISTINCTION_TAGS = {word: [Tag(name) for name in names] for word, names in DISTINCTIONS.items()}
WORD_DISTINCTIONS = ("image type",)

# Pixel spacing, from the best to the last resort: in the patient, at the detector, of the scanned film.
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

SLICE_NAMES = (
    *NUMBERS, *CODES, *WORDS, *SPACINGS, *(name for names in DISTINCTIONS.values() for name in names), "InstanceNumber",
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient",
    "ImageOrientationPatient", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "BitsAllocated", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "FrameIncrementPointer",
    "SliceVector", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    *PIXEL_NAMES, "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    *(name for names in PADDING_NAMES.values() for name in names), "ModalityLUTSequence",
    "RealWorldValueMappingSequence", "DetectorInformationSequence",
)  # fmt: skip
SLICE_TAGS = [Tag(name) for name in SLICE_NAMES]

# Sequences whose first item describes all frames of a file, whatever its kind; the second one says where nuclear
# medicine looked from.
TOP_SEQUENCES = ("RealWorldValueMappingSequence", "DetectorInformationSequence")

# Where an enhanced multi-frame file keeps what a classic one has at its top.
FUNCTIONAL_GROUPS = (
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence",
    "FrameContentSequence", "MREchoSequence", "MRTimingAndRelatedParametersSequence", "CTReconstructionSequence",
    "CTXRayDetailsSequence", "RealWorldValueMappingSequence", "CardiacSynchronizationSequence", "MRDiffusionSequence",
    "MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence", "MRModifierSequence",
)  # fmt: skip


@dataclass(frozen=True)
class Frames:
    """The frames of one file: its data set, how it stores pixels, and the data sets that describe each frame.

    path: of the file. table: of values, where its pixels are numbers in one. offsets_mm: of each frame along the normal
    of the first, where the frames have no places of their own.
    """

    dataset: FileDataset
    stored: PixelFormat
    groups: Sequence[tuple[Dataset, ...]]
    path: Path
    table: ValueTable | None
    offsets_mm: Sequence[float] | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the decoded pixels."""
        return self.stored.num_bytes


@dataclass(frozen=True)
class SliceSource:
    """Which UIDs a slice's file is under, and which file it is."""

    series: str
    study: str
    frame_of_reference: str
    path: Path


@dataclass(frozen=True)
class Slice:
    """One frame. `groups` are the data sets that describe it, most specific first; `plane` is None without a place.

    valid: which pixels are image rather than padding; None where all are, or they are not read. corrections: what was
    done to its values, in words. notes: what was assumed of its place, in words. distinctions: its values of
    `DISTINCTIONS`, each a number, or words of those that are; 0 and none where the tag is missing or damaged.
    """

    source: SliceSource

    groups: tuple[Dataset, ...]
    identity: tuple[str, int]
    shape: tuple[int, int]
    plane: Plane | None
    rescale: tuple[float, float]
    inverted: bool
    pixels: Any  # NDArray [rows, columns, ...], None where they are not read
    valid: NDArray[np.bool_] | None
    corrections: tuple[str, ...]
    notes: tuple[str, ...]
    distinctions: Mapping[str, float | tuple[str, ...]]


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


def read_slices(path: Path) -> list[Slice]:
    """The frames of one file, without their pixels."""
    frames = read_frames(path, pixels=False)
    return _slices(frames, [None] * len(frames.groups), None)


def read_frames(path: Path, *, pixels: bool) -> Frames:
    """What a file holds, its pixels not decoded yet, and those of a deflated file not unpacked either."""
    dataset = read_dataset(path, SLICE_TAGS, pixels=pixels)
    with guarded("the header is damaged"):
        stored = pixel_format(dataset, path.stat().st_size)
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
        items = (dataset.get(name) or () for name in TOP_SEQUENCES)
        top = (*(item for sequence in items for item in sequence[:1]), dataset)
        shared = tuple(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
        offsets_mm = None
        if stored.frames > 1 and not per_frame:
            top = (*_functional_groups(shared), *top)
            offsets_mm = _offsets_mm(top, stored.frames)
            chains = [top] * stored.frames
        elif stored.frames > 1 and len(per_frame) != stored.frames:
            raise ScanError(f"its {stored.frames:,} frames do not all say where they lie")
        else:
            chains = [(*_functional_groups((frame, *shared)), *top) for frame in per_frame] or [top]
        table = value_table(dataset, stored.kind == "i", stored.little_endian) if stored.samples == 1 else None
    return Frames(dataset, stored, chains, path, table, offsets_mm)


def _offsets_mm(top: Sequence[Dataset], num_frames: int) -> Sequence[float]:
    """Where frames lie along the normal of the first that have no places of their own, by what they follow each other.

    Raises ScanError where that is time, or another view, or where nothing says how far they are apart.
    """
    pointer = first_value(top, "FrameIncrementPointer")
    pointers = () if pointer is None else (pointer,) if isinstance(pointer, int) else tuple(pointer)
    unplaced = ScanError(f"its {num_frames:,} frames do not all say where they lie")
    step = floats(top, "SpacingBetweenSlices", 1)
    if not step or step[0] == 0 or pointers not in ((), (Tag("SliceVector"),)):
        raise unplaced
    numbers = floats(top, "SliceVector", num_frames) if pointers else tuple(map(float, range(num_frames)))
    if numbers is None:
        raise unplaced
    return [(number - numbers[0]) * step[0] for number in numbers]


def decode(frames: Frames) -> list[Slice]:
    """The frames of one file with their pixels."""
    dataset: Dataset = frames.dataset
    if frames.stored.syntax == DeflatedExplicitVRLittleEndian:
        with guarded("the pixel data is cut short or damaged"), frames.path.open("rb") as file:
            dataset = _inflated(file, SLICE_TAGS, frames.num_bytes + MAX_HEADER_BYTES, pixels=True)
    pixels = decode_pixels(dataset, frames.stored)
    with guarded("the header is damaged"):
        valid = valid_pixels(pixels, padding(frames.dataset, frames.stored))
    return _slices(frames, list(pixels if frames.table is None else frames.table.apply(pixels)), valid)


def _slices(frames: Frames, pixels: Sequence[Any], valid: NDArray[np.bool_] | None) -> list[Slice]:
    stored = frames.stored
    found = []
    with guarded("the header is damaged"):
        names = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
        uid, series, study, frame_of_reference = (str(frames.dataset.get(name) or "") for name in names)
        source, shape = SliceSource(series, study, frame_of_reference, frames.path), (stored.rows, stored.columns)
        for number, (groups, one) in enumerate(zip(frames.groups, pixels, strict=True)):
            inside = None if valid is None else valid[number]
            plane, (rescale, words) = _plane(groups, shape), _rescale(groups, frames)
            notes: tuple[str, ...] = ()
            if plane is not None and frames.offsets_mm is not None:
                moved = np.array(plane.position) + frames.offsets_mm[number] * plane.axes[2]
                plane = replace(plane, position=tuple(moved.tolist()))
                step = abs(frames.offsets_mm[1] - frames.offsets_mm[0])
                notes = (f"frames without places of their own laid along the slice normal, {step:.4g} mm apart",)
            distinctions = {word: _distinction(groups, word) for word in DISTINCTIONS}
            one_slice = Slice(
                source, groups, (uid, number), shape, plane, rescale, stored.inverted, one, inside, words, notes,
                distinctions,
            )  # fmt: skip
            found.append(one_slice)
    return found


def _distinction(groups: Sequence[Dataset], word: str) -> float | tuple[str, ...]:
    tags = DISTINCTION_TAGS[word]
    try:
        value = next((group[tag].value for group in groups for tag in tags if tag in group), None)
        if word in WORD_DISTINCTIONS:
            return () if value is None else (value,) if isinstance(value, str) else tuple(map(str, value))
        number = float(value[0] if isinstance(value, MultiValue) else value or 0)
    except Exception as error:  # a series must not fail for a tag that few need
        if is_of_machine(error):
            raise
        return () if word in WORD_DISTINCTIONS else 0.0
    return number if math.isfinite(number) else 0.0


def _functional_groups(containers: Sequence[Dataset]) -> list[Dataset]:
    found = [container.get(name) for container in containers for name in FUNCTIONAL_GROUPS]
    return [sequence[0] for sequence in found if sequence]


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
        bits, signed = (table.bits, False) if table else (stored.stored, stored.kind == "i")
        return (-slope, intercept + slope * (-1 if signed else 2**bits - 1)), words
    return (slope, intercept), words


def _mapping(groups: Sequence[Dataset]) -> Dataset | None:
    """The real-world mapping that counts, None where there is none, or none by a slope."""
    if first_value(groups, "Modality") in MEASURED:
        return None
    return next((group for group in groups if first_value((group,), "RealWorldValueSlope") is not None), None)
