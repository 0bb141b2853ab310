"""Where the places of a reference scan lie in another scan, by rigid or affine registration of the two coarse images.

For archives in which patients lie differently in the field of view, so that the same relative or physical position is
not the same anatomy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from raygenesis.archive.geometry import axis_weights, resample
from raygenesis.errors import ScanError

# Registered coarse to fine: the reference in about so many voxels a side on average, or fewer where it has fewer.
SIDES = {2: (16, 32, 64), 3: (8, 16, 28)}

# The optimiser's first and last step, in sides of a voxel of MIDDLE, the middle level; and its most steps a level.
MIDDLE, FIRST_STEP, LAST_STEP, MAX_STEPS = 1, 0.75, 0.003, 150

# What lies beyond is no patient in another position but a registration gone astray.
MIN_SCALE, MAX_SCALE = 0.5, 2.0
MAX_TURN_DEGREES = 45.0
MIN_OVERLAP = 0.25
MIN_CORRELATION = 0.3

Registration = Literal["rigid", "affine"]
Matrix = sitk.Euler2DTransform | sitk.Euler3DTransform | sitk.AffineTransform


class AlignmentError(ScanError):
    """A scan cannot be aligned to its reference."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """The map from a reference's places to a scan's: scan = matrix @ reference + offset_mm, in mm from the corners."""

    matrix: NDArray[np.float64]  # [ndim, ndim], z y x (2D: y x)
    offset_mm: NDArray[np.float64]  # [ndim]

    def corresponding(self, centre_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same anatomical place in the scan: centres [..., ndim] in mm from its corner."""
        return centre_mm @ self.matrix.T + self.offset_mm


def align(
    reference: NDArray[np.float32],
    reference_spacing_mm: Sequence[float] | NDArray[np.float64],
    scan: NDArray[np.float32],
    scan_spacing_mm: Sequence[float] | NDArray[np.float64],
    registration: Registration,
) -> Alignment:
    """Register a scan to a reference by their coarse images: the same bits each time, on any number of cores.

    reference, scan: [z, y, x] (2D: [y, x]) in [0, 1]; spacings along the same axes.
    registration: `rigid` turns and shifts; `affine` scales and shears as well.
    Raises AlignmentError for an image in which nothing differs, and where the registration fails or ends in what no
    positioning explains.
    """
    for name, image in (("the reference", reference), ("the scan", scan)):
        if not (image.size and np.ptp(image) > 1e-6):
            raise AlignmentError(f"it cannot be aligned: {name}'s coarse image has the same value everywhere")
    own, other = np.array(reference_spacing_mm, float), np.array(scan_spacing_mm, float)
    size, scan_size = own * reference.shape, other * scan.shape
    steps = [float(np.prod(size)) ** (1 / reference.ndim) / side for side in SIDES[reference.ndim]]
    # Registered in voxels of the middle level and not in mm: the optimiser's steps suit a mouse as they do a man.
    unit = steps[MIDDLE]
    levels = [
        (_coarser(reference, own / unit, step / unit), _coarser(scan, other / unit, step / unit)) for step in steps
    ]
    with _one_thread():
        transform = _best_start(*levels[0])
        correlation = _register(*levels[0], transform)
        if registration == "affine":
            # Turned and shifted first: scales and shears need not make up for how the patient lies.
            transform = _as_affine(transform)
        for fixed, moving in levels[1:]:
            correlation = _register(fixed, moving, transform)
    found = _alignment(transform, unit)
    _check(found, correlation, size, scan_size)
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """SimpleITK on one thread, so that sums are made in one order whatever the machine's number of cores.

    For the whole process while it lasts: the correlation metric does not heed the registration's own setting.
    """
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _coarser(image: NDArray[np.float32], spacing: NDArray[np.float64], step: float) -> sitk.Image:
    """The whole image in voxels of about `step`, never finer than they are, placed by its corner."""
    shape = [max(1, min(side, round(side * fine / step))) for side, fine in zip(image.shape, spacing, strict=True)]
    weights = [axis_weights(side, num, 0.0, side)[1] for side, num in zip(image.shape, shape, strict=True)]
    coarser = sitk.GetImageFromArray(resample(image, weights))
    wide = (spacing * image.shape / shape)[::-1]
    coarser.SetSpacing(wide.tolist())
    coarser.SetOrigin((wide / 2).tolist())  # the centre of voxel 0
    return coarser


def _best_start(fixed: sitk.Image, moving: sitk.Image) -> Matrix:
    """The shift that correlates better: centre of brightness on centre of brightness, or middle on middle."""
    around = _centroid(fixed)
    starts: list[Matrix] = []
    for shift in (_centroid(moving) - around, _middle(moving) - _middle(fixed)):
        start = sitk.Euler2DTransform() if len(shift) == 2 else sitk.Euler3DTransform()
        start.SetCenter(around.tolist())
        start.SetTranslation(shift.tolist())
        starts.append(start)
    return min(starts, key=lambda start: _correlation_after(fixed, moving, start))


def _correlation_after(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Minus the squared correlation of the images under a transform; 0 where they do not overlap."""
    method = _method()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        return method.MetricEvaluate(fixed, moving)
    except RuntimeError:
        return 0.0


def _middle(image: sitk.Image) -> NDArray[np.float64]:
    """x y z (2D: x y) of the middle of an image whose corner is at 0."""
    return np.array(image.GetSpacing()) * image.GetSize() / 2


def _centroid(image: sitk.Image) -> NDArray[np.float64]:
    """x y z (2D: x y) of an image's first moments."""
    voxels = sitk.GetArrayViewFromImage(image).T.astype(np.float64)  # [x, y, z]
    weights = voxels / voxels.sum()
    indices = [(np.indices(voxels.shape)[axis] * weights).sum() for axis in range(voxels.ndim)]
    return (np.array(indices) + 0.5) * image.GetSpacing()


def _as_affine(transform: Matrix) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(transform.GetDimension())
    affine.SetCenter(transform.GetCenter())
    affine.SetMatrix(transform.GetMatrix())
    affine.SetTranslation(transform.GetTranslation())
    return affine


def _register(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Improve a transform in place; returns the correlation that it reaches. Raises AlignmentError."""
    method = _method()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:
        raise AlignmentError("it cannot be aligned: its registration to the reference found no way on") from None
    return math.sqrt(max(-method.GetMetricValue(), 0.0))


def _method() -> sitk.ImageRegistrationMethod:
    """Correlation over every voxel, by gradient descent; nothing is drawn at random."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.NONE)
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        FIRST_STEP, LAST_STEP, MAX_STEPS, relaxationFactor=0.8, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def _alignment(transform: Matrix, unit: float) -> Alignment:
    """Out of SimpleITK's x y z, its centre of rotation and the unit of length."""
    ndim = transform.GetDimension()
    matrix = np.reshape(transform.GetMatrix(), (ndim, ndim))[::-1, ::-1]
    centre, shift = np.array(transform.GetCenter())[::-1], np.array(transform.GetTranslation())[::-1]
    return Alignment(np.ascontiguousarray(matrix), (centre + shift - matrix @ centre) * unit)


def _check(found: Alignment, correlation: float, size: NDArray[np.float64], scan_size: NDArray[np.float64]) -> None:
    """Raises AlignmentError for what no positioning explains."""
    if not (np.isfinite(found.matrix).all() and np.isfinite(found.offset_mm).all() and math.isfinite(correlation)):
        raise AlignmentError("it cannot be aligned: its registration to the reference ends in no finite number")
    left, scales, right = np.linalg.svd(found.matrix)
    turn = left @ right
    ndim = len(size)
    cosine = (np.trace(turn) - (ndim - 2)) / 2
    degrees = math.degrees(math.acos(min(max(float(cosine), -1.0), 1.0)))
    overlap = _overlap(found, size, scan_size)
    wrong = {
        f"scales it by {scales[-1]:.2f} to {scales[0]:.2f}": not MIN_SCALE <= scales[-1] <= scales[0] <= MAX_SCALE,
        f"turns it by {degrees:.0f} degrees": degrees > MAX_TURN_DEGREES or np.linalg.det(turn) < 0,
        f"leaves {overlap:.0%} of it on the reference": overlap < MIN_OVERLAP,
        f"reaches a correlation of only {correlation:.2f}": correlation < MIN_CORRELATION,
    }
    for fault, is_wrong in wrong.items():
        if is_wrong:
            raise AlignmentError(f"it cannot be aligned: its registration to the reference {fault}")


def _overlap(found: Alignment, size: NDArray[np.float64], scan_size: NDArray[np.float64]) -> float:
    """The part of the smaller field of view that lies in the other one."""
    grid = (np.indices((16,) * len(size)).reshape(len(size), -1).T + 0.5) / 16 * size
    there = found.corresponding(grid)
    shared = ((there >= 0) & (there <= scan_size)).all(1).mean() * np.prod(size)
    return float(shared / min(np.prod(size), np.prod(scan_size) / abs(np.linalg.det(found.matrix))))
