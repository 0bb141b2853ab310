"""What a DICOM file's stored values stand for: tables of values, real-world units, and padding that is no image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from raygenesis.errors import ScanError

# Units of UCUM that a correction may name; of others, which could be any text, it names none.
UNITS = {
    "[hnsf'U]": "HU", "mm2/s": "mm2/s", "um2/s": "um2/s", "ms": "ms", "s": "s", "/s": "1/s", "Hz": "Hz", "ppm": "ppm",
    "%": "%", "1": "no unit", "{ratio}": "ratio", "Bq/ml": "Bq/ml", "g/ml{SUVbw}": "SUV", "ml/min": "ml/min",
    "ml/min/100g": "ml/min/100g", "ml/100g": "ml/100g", "T": "T", "rad": "rad", "cm/s": "cm/s",
}  # fmt: skip


@dataclass(frozen=True)
class ValueTable:
    """A modality LUT: what stands for each stored value from `first` on, in so many bits, unsigned."""

    first: int
    bits: int
    values: NDArray[Any]

    def apply(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The values of stored pixels; those beyond the table's ends have the value of its end."""
        return self.values[np.clip(pixels.astype(np.int64) - self.first, 0, len(self.values) - 1)]


def value_table(dataset: Dataset, signed: bool, little_endian: bool) -> ValueTable | None:
    """The modality LUT of a file, None where it has none. Raises ScanError for one that is cut short."""
    sequence = dataset.get("ModalityLUTSequence")
    if not sequence:
        return None
    count, first, bits = (int(number) for number in sequence[0].LUTDescriptor)
    count, first = count or 2**16, first - 2**16 if signed and first >= 2**15 else first
    data = sequence[0].LUTData
    if isinstance(data, bytes):
        is_packed = bits <= 8 and len(data) < 2 * count  # two entries in a word
        data = np.frombuffer(data, "u1" if is_packed else "<u2" if little_endian else ">u2")
    values = np.atleast_1d(np.asarray(data, np.int64))[:count]
    if len(values) < count or not 0 < bits <= 16 or count < 2:
        raise ScanError("its modality LUT is cut short or damaged")
    return ValueTable(first, bits, values.astype(np.uint8 if bits <= 8 else np.uint16))


def unit_words(dataset: Dataset) -> str:
    """The unit of a real-world mapping in brackets, behind a space; empty where it is none that we know."""
    codes = dataset.get("MeasurementUnitsCodeSequence")
    unit = UNITS.get(str(codes[0].get("CodeValue", ""))) if codes else None
    return f" ({unit})" if unit else ""


def valid_pixels(pixels: NDArray[Any], padding: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    """Which pixels are part of the image; None where all are. padding: the others' least and largest value, or NaN."""
    if padding is None:
        return None
    least, most = sorted(padding.tolist())
    is_padding = np.isnan(pixels) if least != least else (pixels >= least) & (pixels <= most)
    return ~is_padding if is_padding.any() else None
