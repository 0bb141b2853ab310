"""Side-cars: NAME.json beside an array or a picture, which says what the file itself cannot."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from raygenesis.archive.formats.regular_files import require_regular
from raygenesis.errors import ScanError
from raygenesis.text.names import printable

# What is larger is no side-car.
MAX_BYTES = 65536
MAX_KEY = 40  # characters that are shown


class SideCar(BaseModel):
    """A side-car's keys. The array's axes are taken as rising towards superior, anterior and right."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    spacing_mm: tuple[PositiveFloat, ...] = Field(min_length=2, max_length=3)  # z y x, or y x
    array: str | None = None  # the name inside an .npz of several
    modality: str = Field("", pattern="^[A-Z]{0,16}$")  # DICOM's code


def side_car_of(path: Path) -> Path:
    """Where the side-car of a file lies, if there is one."""
    return path.with_suffix(".json")


def read_side_car(path: Path) -> SideCar | None:
    """The side-car of a file, None where there is none. Raises ScanError naming the key that is wrong."""
    side_car = side_car_of(path)
    try:
        require_regular(side_car)
        if side_car.stat().st_size > MAX_BYTES:
            raise ScanError(f"its side-car (.json) has more than {MAX_BYTES:,} bytes")
        return SideCar.model_validate(json.loads(side_car.read_text()))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        fault = error.errors()[0]
        if not fault["loc"]:
            raise ScanError('its side-car (.json) must be an object such as {"spacing_mm": [1.0, 0.7, 0.7]}') from None
        key = printable(".".join(str(part) for part in fault["loc"]), MAX_KEY)
        raise ScanError(f"its side-car (.json): {key}: {fault['msg'].lower()}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"its side-car (.json) is not readable ({type(error).__name__})") from None
