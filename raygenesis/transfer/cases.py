"""Examples in memory, in the form that a network takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.geometry import axis_weights, resample
from raygenesis.archive.intake.preparation import prepare
from raygenesis.archive.intensity import ValueRange, limits, normalise, percentiles
from raygenesis.archive.volume import Volume, valid_voxels
from raygenesis.errors import ScanError
from raygenesis.settings import ArchiveSettings, IntensitySettings
from raygenesis.transfer.examples import SEGMENTATION, Example, Problem, Target, Value
from raygenesis.workspace.faults import lasting_reason, patiently

IMAGES = "the target's images"  # what cannot be reached, where it may pass


@dataclass(frozen=True)
class Form:
    """How images become a network's input.

    input_shape: its voxels, z y x (2D: y x); whole scans to be segmented are resampled to `spacing_mm` instead and
    padded to at least `input_shape`. num_classes: of label maps, background included; None where it is known from the
    maps alone. keeps_empty: whether a label map may be empty. symmetric_axes: as `Target` has them. preparation: what
    is done to an image first, as to the scans of the archive that was learnt from; None where nothing is.
    """

    is_segmentation: bool
    input_shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    intensity: IntensitySettings
    num_classes: int | None = None
    keeps_empty: bool = False
    symmetric_axes: tuple[str, ...] = ()
    preparation: ArchiveSettings | None = None

    @property
    def ndim(self) -> int:
        return len(self.input_shape)


@dataclass(frozen=True)
class CaseGrid:
    """The voxels on which a prediction is written: shape z y x (2D: y x), and affine as a Volume has it.

    within: the part of a case's voxels that shows them; the rest is padding. source: the whole scan's file. origin,
    extent: in these voxels from their corner, z y x, what is shown: all of them where None, as nothing was cut off.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    within: tuple[slice, ...]
    source: Path | None = None
    origin: tuple[float, ...] | None = None
    extent: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Case:
    """An example as a network takes it.

    image: float16 [z, y, x] (2D: [y, x]) in [0, 1]; label: uint8 of the same shape, 0 = background, of a segmentation;
    value: of other tasks, as `Example` has it; grid: of a segmentation.
    """

    name: str
    subject: str
    image: NDArray[np.float16]
    label: NDArray[np.uint8] | None = None
    value: Value = None
    grid: CaseGrid | None = None


@dataclass(frozen=True)
class TrialCases:
    """The cases that a trial learns from, validates on and tests on."""

    labelled: Sequence[Case]
    validation: Sequence[Case]
    test: Sequence[Case]


def form_of(
    target: Target, input_shape: Sequence[int], spacing_mm: Sequence[float] | None, intensity: IntensitySettings,
    archive: ArchiveSettings | None = None,
) -> Form:  # fmt: skip
    """The form of a target's cases; a target's own window of intensities takes precedence over the settings'.

    archive: of the scans that were learnt from, `crop_to_body` and `spacing_mm` count.
    """
    if target.window is not None:
        intensity = intensity.model_copy(update={"window": target.window})
    num_classes = len(target.classes) + 1 if target.classes else None
    is_segmentation = target.task == SEGMENTATION
    spacing = tuple(spacing_mm) if spacing_mm is not None else None
    is_prepared = archive is not None and (archive.crop_to_body or archive.spacing_mm is not None)
    return Form(
        is_segmentation, tuple(input_shape), spacing, intensity, num_classes, target.keeps_empty, target.symmetric_axes,
        archive if is_prepared else None,
    )  # fmt: skip


def read_cases(examples: Sequence[Example], form: Form) -> list[Case | Problem]:
    """The cases of examples of one image, which is decoded once; a Problem in place of what cannot be a case."""
    try:
        volume = patiently(examples[0].image.read, IMAGES)
        if volume.ndim != form.ndim:
            kinds = {2: "a single slice", 3: "a volume"}
            raise ScanError(f"it is {kinds[volume.ndim]}, and the target's images are to be {form.ndim}D")
        prepared = volume if form.preparation is None else prepare(volume, form.preparation)
        image = _in_unit_range(prepared, form.intensity)
    except (ScanError, OSError) as error:
        return [Problem(example.name, lasting_reason(error, IMAGES)) for example in examples]
    return [_case(example, volume, prepared, image, form) for example in examples]


def _case(example: Example, scan: Volume, volume: Volume, image: NDArray[np.float32], form: Form) -> Case | Problem:
    """scan: as its file has it, on whose voxels labels are; volume: prepared, of which `image` is in [0, 1]."""
    try:
        label = None
        if form.is_segmentation and example.label is not None:
            label = patiently(partial(example.label.read, scan), IMAGES)
        if label is not None:
            _check_label(label, form)
        origin, extent = _box(example, volume)
    except (ScanError, OSError) as error:
        return Problem(example.name, lasting_reason(error, IMAGES))
    shape = form.input_shape
    if form.spacing_mm is not None:
        sides = zip(volume.shape, volume.spacing_mm, form.spacing_mm, strict=True)
        shape = tuple(max(1, round(side * step / wanted)) for side, step, wanted in sides)
    missing = [max(0, least - side) for least, side in zip(form.input_shape, shape, strict=True)]
    padding = [(space // 2, space - space // 2) for space in missing]
    taken = [axis_weights(*sides) for sides in zip(volume.shape, shape, origin, extent, strict=True)]
    voxels = resample(image[tuple(part for part, _ in taken)], [weights for _, weights in taken])
    if label is not None:
        was_empty = not label.any()
        label = np.pad(label[np.ix_(*nearest(scan.shape, shape, *_box_in(scan, volume, origin, extent)))], padding)
        if not (was_empty or label.any()):
            return Problem(example.name, _labels_lost(form))
    within = tuple(slice(before, before + side) for (before, _), side in zip(padding, shape, strict=True))
    grid = None
    if form.is_segmentation:
        grid = CaseGrid(shape, _affine_of(volume, shape, origin, extent), within)
        if example.region is None:
            shown = (None, None) if volume is scan else _box_in(scan, volume, origin, extent)
            grid = CaseGrid(scan.shape, scan.affine, within, example.image.paths[0], *shown)
    return Case(
        example.name, example.subject, np.pad(voxels, padding).astype(np.float16), label,
        None if form.is_segmentation else example.value, grid,
    )  # fmt: skip


def _in_unit_range(volume: Volume, intensity: IntensitySettings) -> NDArray[np.float32]:
    low, high = percentiles(valid_voxels(volume, volume.voxels))
    row: ValueRange = {"low": [low], "high": [high], "slope": volume.slope, "intercept": volume.intercept}
    return normalise(volume.voxels, *limits(row, intensity))


def _box_in(
    scan: Volume, volume: Volume, origin: Sequence[float], extent: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A box in the voxels of a scan, of one in those of what it was prepared to: cut and resampled along its axes."""
    if volume is scan:
        return tuple(origin), tuple(extent)
    change = np.linalg.inv(scan.affine) @ volume.affine
    steps = np.diag(change)[: scan.ndim][::-1]
    corner = change[: scan.ndim, 3][::-1] + 0.5 - 0.5 * steps
    return tuple((corner + steps * origin).tolist()), tuple((steps * extent).tolist())


def _box(example: Example, volume: Volume) -> tuple[list[float], list[float]]:
    """Origin (from the corner of the voxel array) and extent of what is shown, in voxels z y x (2D: y x)."""
    if example.region is None:
        return [0.0] * volume.ndim, [float(side) for side in volume.shape]
    centre = (np.linalg.inv(volume.affine) @ [*example.region.centre_mm, 1.0])[: volume.ndim][::-1] + 0.5
    if not ((centre >= 0) & (centre <= volume.shape)).all():
        x, y, z = example.region.centre_mm
        raise ScanError(f"its place, {x:.1f} {y:.1f} {z:.1f} mm (RAS), lies outside of the image")
    extent = np.array(example.region.extent_mm) / volume.spacing_mm
    return (centre - extent / 2).tolist(), extent.tolist()


def nearest(
    sides: Sequence[int], shape: Sequence[int], origin: Sequence[float], extent: Sequence[float]
) -> list[NDArray[np.int64]]:
    """The voxel nearest to each output voxel's centre, along each axis."""
    return [
        np.clip(np.floor(begin + (np.arange(num_out) + 0.5) * length / num_out), 0, side - 1).astype(np.int64)
        for side, num_out, begin, length in zip(sides, shape, origin, extent, strict=True)
    ]


def _affine_of(
    volume: Volume, shape: Sequence[int], origin: Sequence[float], extent: Sequence[float]
) -> NDArray[np.float64]:
    """Affine of `shape` voxels that fill a box of a volume."""
    step = (np.array(extent) / shape)[::-1]
    to_voxels = np.eye(4)
    to_voxels[: volume.ndim, : volume.ndim] = np.diag(step)
    to_voxels[: volume.ndim, 3] = np.array(origin)[::-1] + 0.5 * step - 0.5
    return volume.affine @ to_voxels


def _check_label(label: NDArray[np.uint8], form: Form) -> None:
    most = int(label.max(initial=0))
    if form.num_classes is not None and most >= form.num_classes:
        raise ScanError(f"the unknown class {most}: known are 1 to {form.num_classes - 1}")
    if not (most or form.keeps_empty):
        raise ScanError("an empty mask: none of its voxels are labelled")


def _labels_lost(form: Form) -> str:
    """Why a label map with labels is empty in the form that a network takes."""
    if form.spacing_mm is None:
        return f"its region shows none of its labels at finetune.input_shape={list(form.input_shape)}"
    spacing = [round(step, 3) for step in form.spacing_mm]
    return f"all of its labels are lost at finetune.spacing_mm={spacing}: give a finer one"
