"""What the archive keeps of a DICOM header: acquisition facts that identify nobody."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydicom import Dataset

from raygenesis.archive.formats.dicom_elements import first_value, guarded

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
