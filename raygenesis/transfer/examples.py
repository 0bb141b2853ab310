"""Examples of a target task: an image, what is known of it, and its subject; nothing is decoded before `read`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.formats.readers import read_scan
from raygenesis.archive.volume import Volume
from raygenesis.errors import ScanError
from raygenesis.text.names import MAX_NAME, inner_path, printable, reason_text
from raygenesis.workspace.faults import is_passing, lasting_reason

SEGMENTATION, CLASSIFICATION, MULTILABEL, REGRESSION = "segmentation", "classification", "multilabel", "regression"

# What an official list says of an example.
TRAIN, VALIDATION, TEST = "train", "validation", "test"

MAX_CLASSES = 256

# What is known of an example that is not segmented: the number of its class, 0 or 1 for each class, or a number.
Value: TypeAlias = int | float | tuple[int, ...] | None


class Image(Protocol):
    """Where an image comes from. paths: the files that hold it, by which pretraining is found to have seen it."""

    @property
    def paths(self) -> tuple[Path, ...]: ...

    def read(self) -> Volume: ...


class LabelMap(Protocol):
    """Where the classes of an image's voxels come from: a dataclass, whose fields distinguish it from others."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def read(self, image: Volume) -> NDArray[np.uint8]:
        """Class of each voxel, on the image's grid ([z, y, x]; 2D: [y, x]), 0 = background. Raises ScanError."""


@dataclass(frozen=True)
class Region:
    """A part of an image, along its axes: centre x y z in RAS+ mm, and extent z y x in mm."""

    centre_mm: tuple[float, float, float]
    extent_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Example:
    """One thing to learn from or to test on.

    name: unique within the target, with "/" between folders; RaygenesisError for one that could lead out of a folder,
    as files are called by it. label: of a segmentation. value: of the other tasks, the
    number of its class, 0 or 1 for each class (multilabel), or the number to predict (regression). region: the whole
    image when None. split: what the official lists say, None where there are none.
    """

    name: str
    subject: str
    image: Image
    label: LabelMap | None = None
    value: Value = None
    region: Region | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        inner_path(self.name)


@dataclass(frozen=True)
class Problem:
    """An example that is left out, and why; both as they may be shown, whatever a file holds."""

    name: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name, MAX_NAME))
        object.__setattr__(self, "reason", reason_text(self.reason))


@dataclass(frozen=True)
class Target:
    """The examples of a target task, and the files that could not become examples.

    classes: names, in the order of their numbers; of a segmentation without the background; none of a regression.
    window: values (HU for CT) that become 0 and 1; each image's own percentiles when None. keeps_empty: whether a label
    map without any label is an example (there is nothing to find) or a problem (it was forgotten). symmetric_axes:
    those of x, y and z (towards right, anterior and superior) along which a mirrored image is as likely, and has the
    same label.
    """

    task: str
    ndim: int
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()
    window: tuple[float, float] | None = None
    keeps_empty: bool = False
    symmetric_axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own, or in the files of a DICOM series."""

    paths: tuple[Path, ...]

    def read(self) -> Volume:
        """The one grey volume. Raises ScanError."""
        return _grey(read_scan(self.paths), self.paths[0])


@dataclass(frozen=True)
class LabelFile:
    """A label map in a file of its own, on the image's grid.

    classes: value in the file → class, where the file's are not the classes' numbers; other values are refused.
    """

    path: Path
    classes: tuple[tuple[int, int], ...] = field(default=())

    def read(self, image: Volume) -> NDArray[np.uint8]:
        try:
            volumes = read_scan([self.path], is_label_map=True)
        except (ScanError, OSError) as error:  # an example has two files: say which it is
            if is_passing(error):
                raise
            raise ScanError(f"{self.path}: {lasting_reason(error)}") from None
        label = _grey(volumes, self.path)
        check_aligned(self.path, label, image)
        return self.classes_of(label)

    def classes_of(self, label: Volume) -> NDArray[np.uint8]:
        """Class of each voxel of the file as it was read. Raises ScanError for values that are no known class."""
        whole = label.voxels
        if whole.dtype.kind == "f" or (label.slope, label.intercept) != (1.0, 0.0):
            values = label.voxels * label.slope + label.intercept
            whole = values.round()
            if not np.array_equal(whole, values):
                whole = np.array([-1])
        if not (whole.min() >= 0 and whole.max() < MAX_CLASSES):
            raise ScanError(f"{self.path} holds other values than whole numbers from 0 to 255: it is not a label map")
        if not self.classes:
            return whole.astype(np.uint8)
        unknown = set(np.unique(whole).astype(int).tolist()) - {value for value, _ in self.classes}
        if unknown:
            known = sorted(value for value, _ in self.classes)
            raise ScanError(f"{self.path} holds the values {sorted(unknown)}, and only {known} are known")
        classes = np.zeros(MAX_CLASSES, np.uint8)
        for value, number in self.classes:
            classes[value] = number
        return classes[whole.astype(np.uint8)]


def check_aligned(path: Path, label: Volume, image: Volume) -> None:
    """Raise ScanError unless a label map has its image's voxels, at their places to half a voxel."""
    if label.shape != image.shape:
        raise ScanError(
            f"{path} has {times(label.shape)} voxels and its image {times(image.shape)}: give a label map on the "
            "image's grid"
        )
    far = [*image.shape[::-1], 1][:3]
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, side) for side in far))]).T
    apart = np.abs((image.affine - label.affine) @ corners)[:3].max()
    if apart > min(image.spacing_mm) / 2:
        raise ScanError(
            f"{path} lies up to {apart:.1f} mm beside its image by their headers: give a label map on the image's grid"
        )


def times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _grey(volumes: Sequence[Volume], path: Path) -> Volume:
    if len(volumes) > 1 or volumes[0].num_channels > 1:
        number = max(len(volumes), volumes[0].num_channels)
        raise ScanError(f"{path} holds {number} images: expected one, of grey values")
    return volumes[0]
