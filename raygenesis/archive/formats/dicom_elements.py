"""Values of DICOM's elements, and what pydicom may say or raise on the way to them."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pydicom.config import disable_value_validation

from raygenesis.errors import ScanError
from raygenesis.workspace.faults import is_of_machine

# What pydicom logs quotes values of the file.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

# Stored values of these are measurements, whatever way round they are displayed.
MEASURED = {"CT", "PT"}


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
            if is_of_machine(error):
                raise
            raise ScanError(f"{fault} ({type(error).__name__})") from None


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
