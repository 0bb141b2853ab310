"""LiTS: `volume-N.nii` and `segmentation-N.nii` (or `.nii.gz`) anywhere below a folder: the liver in CT.

The headers of cases 28–47 as published give 1 mm in every direction, which is not those scans' spacing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.grid import Grid
from raygenesis.archive.volume import Volume
from raygenesis.transfer.examples import (
    SEGMENTATION,
    TEST,
    TRAIN,
    VALIDATION,
    Example,
    ImageFile,
    LabelFile,
    Problem,
    Target,
    check_aligned,
)
from raygenesis.transfer.targets.listing import by_name, files_below, require_examples

# A tumour lies in the liver and is part of it.
LIVER = ((0, 0), (1, 1), (2, 1))
NAME = re.compile(r"(volume|segmentation)-(\d+)\.nii(\.gz)?")
NUM_CASES = 131


@dataclass(frozen=True)
class LiverMap:
    """A segmentation; where its header gives no place, it lies voxel for voxel on the volume, as the owners intend."""

    path: Path
    volume: Path

    def read(self, image: Volume) -> NDArray[np.uint8]:
        label = read_scan([self.path], is_label_map=True)[0]
        if np.array_equal(label.affine[:3, :3], np.eye(3)):
            stored = label.voxels.T  # such a header turns nothing
            volume: Any = nibabel.load(self.volume)
            voxels, affine = Grid(stored.shape, volume.affine).turned(stored)
            label = replace(label, voxels=voxels, affine=affine)
        check_aligned(self.path, label, image)
        return LabelFile(self.path, LIVER).classes_of(label)


def read(folder: Path) -> Target:
    """Cases 0–99 are for training, 100–114 for validation, 115–130 for testing; each is a subject. Raises ScanError."""
    named: dict[str, list[Path]] = {"volume": [], "segmentation": []}
    for path in files_below(folder, (".nii", ".nii.gz")):
        if match := NAME.fullmatch(path.name):
            named[match[1]].append(path)
    volumes, problems = by_name(folder, named["volume"], _number)
    segmentations, others = by_name(folder, named["segmentation"], _number)
    problems += others
    examples = []
    for number in sorted(volumes.keys() | segmentations.keys(), key=int):
        if missing := [kind for kind, there in (("volume", volumes), ("segmentation", segmentations))
                       if number not in there]:  # fmt: skip
            problems.append(Problem(f"case {number}", f"{missing[0]}-{number}.nii is missing"))
        elif int(number) >= NUM_CASES:
            problems.append(Problem(f"case {number}", f"the published cases are numbered 0 to {NUM_CASES - 1}"))
        else:
            image, name = ImageFile((volumes[number],)), f"volume-{number}"
            label = LiverMap(segmentations[number], volumes[number])
            examples.append(Example(name, name, image, label, split=_split(int(number))))
    window = (-1000.0, 1000.0)
    return require_examples(folder, Target(SEGMENTATION, 3, ("liver",), tuple(examples), tuple(problems), window))


def _number(path: Path) -> str:
    match = NAME.fullmatch(path.name)
    return str(int(match[2])) if match else ""


def _split(number: int) -> str:
    return TRAIN if number < 100 else VALIDATION if number < 115 else TEST
