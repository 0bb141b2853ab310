"""What a DICOM file is, and which scan it belongs to, without its pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import Dataset
from pydicom.tag import Tag

from raygenesis.archive.formats.dicom_elements import first_value, floats, guarded
from raygenesis.archive.formats.dicom_file import read_dataset
from raygenesis.archive.formats.dicom_pixels import check_syntax, syntax_of
from raygenesis.errors import ScanError
from raygenesis.workspace.fingerprint import digest

# Each image is one of its own, without a place in the patient.
PROJECTIONS = {"CR", "DX", "DR", "MG", "RF", "XA", "PX", "IO"}

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ASIDE_CLASSES = {"1.2.840.10008.1.3.10": "a DICOMDIR", "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation"}
ASIDE_MODALITIES = {
    "SR": "a structured report", "KO": "a key object selection", "PR": "a presentation state", "DOC": "a document",
    "RTSTRUCT": "a radiotherapy structure set", "RTPLAN": "a radiotherapy plan", "RTDOSE": "a radiotherapy dose",
    "RTRECORD": "a radiotherapy record", "REG": "a registration", "SEG": "a segmentation", "AU": "a sound recording",
    "ECG": "a waveform", "HD": "a waveform", "EPS": "a waveform", "SM": "a whole-slide image",
}  # fmt: skip
ASIDE_IMAGE_TYPES = {"LOCALIZER": "a localiser", "MOSAIC": "a mosaic of slices in one image"}

# What slices of a stack share but for their series UID, and the numbers that say where a slice lies.
STACK_NAMES = ("StudyInstanceUID", "SeriesNumber", "Modality")
PLACE_NUMBERS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}

HEADER_NAMES = (
    "SOPClassUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID", "Modality", "ImageType", "Rows",
    "Columns", "BitsAllocated", "NumberOfFrames", "ViewPosition", "FrameOfReferenceUID", *STACK_NAMES, *PLACE_NUMBERS,
)  # fmt: skip
HEADER_TAGS = [Tag(name) for name in HEADER_NAMES]


@dataclass(frozen=True)
class Header:
    """What groups files into scans.

    series: SeriesInstanceUID. patient: PatientID, with its issuer where there is one; empty without PatientID. aside:
    why the file is not a scan, else empty. is_projection: whether the file is an image of its own rather than a slice.
    stack: a digest of what the slices of a stack share but for their series UID, that is study, series number,
    modality, orientation, matrix and pixel spacing; empty where the file is no single slice with a place.
    frame_of_reference: its UID. depth_mm: the place of such a slice along its normal.
    """

    series: str
    patient: str
    aside: str
    is_projection: bool
    stack: str = ""
    frame_of_reference: str = ""
    depth_mm: float = 0.0


def read_header(path: Path) -> Header:
    """What a file is and which series it belongs to, without its pixels. Raises ScanError if it is damaged."""
    dataset = read_dataset(path, HEADER_TAGS, pixels=False)
    with guarded("the header is damaged"):
        modality = str(first_value((dataset,), "Modality") or "")
        sop_class = str(first_value((dataset,), "SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))
        aside = ASIDE_CLASSES.get(sop_class) or ASIDE_MODALITIES.get(modality, "")
        series = str(first_value((dataset,), "SeriesInstanceUID") or "")
        if not series and not aside:
            check_syntax(syntax_of(dataset))
            raise ScanError("the header is cut short or damaged: it names no series")
        patient, issuer = (str(first_value((dataset,), name) or "") for name in ("PatientID", "IssuerOfPatientID"))
        placed = all(first_value((dataset,), name) for name in ("ImagePositionPatient", "ImageOrientationPatient"))
        single = int(first_value((dataset,), "NumberOfFrames") or 1) == 1
        is_projection = modality in PROJECTIONS and single and not placed
        aside = aside or _aside(dataset, sop_class, placed, is_projection)
        frame_of_reference = str(first_value((dataset,), "FrameOfReferenceUID") or "")
    if patient and issuer:
        patient = f"{patient}^^^{issuer}"
    header = Header(series, patient, aside, is_projection)
    if aside or not placed or not single:
        return header
    stack, depth_mm = _stack(dataset)
    return replace(header, stack=stack, frame_of_reference=frame_of_reference, depth_mm=depth_mm)


def _stack(dataset: Dataset) -> tuple[str, float]:
    """The digest and the place of a slice as `Header` has them; the digest is empty where there is no place."""
    try:
        with guarded("the header is damaged"):
            sides = tuple(int(first_value((dataset,), name) or 0) for name in ("Rows", "Columns"))
            numbers = {name: floats((dataset,), name, count) for name, count in PLACE_NUMBERS.items()}
            position, orientation, spacing = numbers.values()
            if position is None or orientation is None or spacing is None:
                return "", 0.0
            (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
            normal = (b * f - c * e, c * d - a * f, a * e - b * d)
            depth_mm = sum(along * place for along, place in zip(normal, position, strict=True))
            named = (str(first_value((dataset,), name) or "") for name in STACK_NAMES)
            rounded = (round(number, 3) for number in (*orientation, *spacing))
            return digest([*named, *rounded, *sides]), round(depth_mm, 6)
    except ScanError:
        return "", 0.0


def _aside(dataset: Dataset, sop_class: str, placed: bool, is_projection: bool) -> str:
    if any(first_value((dataset,), name) is None for name in ("Rows", "BitsAllocated")):
        return "it holds no image"
    # Collections store real radiographs as secondary captures too; those say how the patient was looked at.
    radiograph = is_projection and first_value((dataset,), "ViewPosition") is not None
    if (sop_class + ".").startswith(SECONDARY_CAPTURE + ".") and not placed and not radiograph:
        return "a secondary capture"
    image_type = first_value((dataset,), "ImageType") or ()
    words = [image_type] if isinstance(image_type, str) else list(image_type)
    return next((ASIDE_IMAGE_TYPES[word] for word in words if word in ASIDE_IMAGE_TYPES), "")
