"""SIIM-ACR: DICOM radiographs anywhere below a folder, and `train-rle.csv`: where is the pneumothorax?

That table's runs are relative: each start counts from the end of the run before. Pixels go down the columns, from 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.formats.dicom_header import read_header
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from raygenesis.transfer.examples import SEGMENTATION, Example, ImageFile, Problem, Target, times
from raygenesis.transfer.targets.csv_tables import rows
from raygenesis.transfer.targets.listing import by_name, files_below, require_examples
from raygenesis.workspace.faults import lasting_reason, patiently

TABLE = "train-rle.csv"
COLUMNS = ("ImageId", "EncodedPixels")
NONE = "-1"
SIDES = (1024, 1024)


@dataclass(frozen=True)
class RunLengths:
    """The union of the table's masks of one image, each a string of numbers "start length start length …"."""

    masks: tuple[str, ...]

    def read(self, image: Volume) -> NDArray[np.uint8]:
        if image.shape != SIDES:
            raise ScanError(f"an image of {times(image.shape)} pixels: {TABLE} numbers the pixels of {times(SIDES)}")
        label = np.zeros(SIDES, np.uint8)
        for mask in self.masks:
            label |= decode(mask)
        # As displayed, rows lead to inferior and columns to the patient's left; canonical axes lead the other way.
        return np.ascontiguousarray(label[::-1, ::-1])


def decode(encoded: str, sides: tuple[int, int] = SIDES) -> NDArray[np.uint8]:
    """Mask [rows, columns] of 0 and 1, as displayed. Raises ScanError if the runs are none or leave the image."""
    try:
        numbers = np.array(encoded.split(), np.int64)
    except (ValueError, OverflowError):
        raise ScanError("the runs are not whole numbers") from None
    if not numbers.size or numbers.size % 2 or (numbers < 0).any():
        raise ScanError("the runs are not pairs of a start and a length")
    size = sides[0] * sides[1]
    if sum(numbers.tolist()) > size:
        raise ScanError(f"the runs end beyond the {times(sides)} pixels of an image")
    pixels = np.zeros(size, np.uint8)
    runs = np.repeat(np.arange(len(numbers), dtype=np.uint32) % 2, numbers)
    pixels[: len(runs)] = runs
    return pixels.reshape(sides[::-1]).T


def read(folder: Path, *, keep_empty: bool = True) -> Target:
    """Radiographs with their pneumothorax, and with `keep_empty` those without any; no official split.

    The subject is DICOM's patient id, or the image where that is empty. Raises ScanError.
    """
    masks, problems = _table(folder / TABLE)
    images, others = by_name(folder, files_below(folder, ".dcm"), lambda path: path.stem)
    problems += others
    examples = []
    for name, path in images.items():
        source = path.relative_to(folder).as_posix()
        if name not in masks:
            problems.append(Problem(source, f"{TABLE} has no row of it"))
        elif reason := _fault(masks[name]):
            problems.append(Problem(name, f"{TABLE}: {reason}"))
        elif NONE not in masks[name] or keep_empty:
            try:
                subject = patiently(partial(_patient, path), folder) or name
            except (ScanError, OSError) as error:
                problems.append(Problem(source, lasting_reason(error, folder)))
                continue
            label = RunLengths(tuple(mask for mask in masks[name] if mask != NONE))
            examples.append(Example(name, subject, ImageFile((path,)), label))
    alone = sorted(masks.keys() - images.keys())
    problems += [Problem(name, f"{TABLE} names it, and there is no such .dcm") for name in alone]
    target = Target(SEGMENTATION, 2, ("pneumothorax",), tuple(examples), tuple(problems), keeps_empty=True)
    return require_examples(folder, target)


def _table(path: Path) -> tuple[dict[str, list[str]], list[Problem]]:
    """Each image's masks; an image has a row for each."""
    found: dict[str, list[str]] = defaultdict(list)
    problems = []
    for where, (name, encoded) in rows(path, COLUMNS):
        if name:
            found[name].append(encoded)
        else:
            problems.append(Problem(where, "it names no image"))
    return dict(found), problems


def _fault(masks: Sequence[str]) -> str:
    """Why an image's rows give no mask, empty if they do."""
    if NONE in masks:
        return "one row says that there is none and another where it is" if set(masks) != {NONE} else ""
    try:
        for mask in masks:
            decode(mask)
    except ScanError as error:
        return str(error)
    return ""


def _patient(path: Path) -> str:
    header = read_header(path)
    if header.aside or not header.is_projection:
        raise ScanError(f"{header.aside or 'a slice with a place in the patient'}, where a radiograph is expected")
    return header.patient
