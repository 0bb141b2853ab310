"""A target task: labelled scans on one grid, and the seeded draws of who learns and who tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import read_catalogue, split_by_subject
from raygenesis.archive.geometry import axis_weights, resample
from raygenesis.archive.identity import open_identity, subject_in
from raygenesis.archive.intake import file_fingerprint
from raygenesis.archive.intensity import limits, normalise, percentiles
from raygenesis.archive.readers import read_geometry, read_volume
from raygenesis.archive.scans import survey
from raygenesis.archive.volume import Volume
from raygenesis.config import IntensitySettings, Settings
from raygenesis.errors import ScanError, SettingsError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.progress import say
from raygenesis.workspace import Workspace

MIN_TEST_SUBJECTS = 2


@dataclass(frozen=True)
class LabelledScan:
    """Two files of one name: a scan and its label map."""

    name: str  # path below the images folder, and below the labels folder
    subject: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Case:
    """A labelled scan in memory, ready for the network.

    image: float32 [z, y, x] (2D: [y, x]) in [0, 1]; label: uint8 of the same shape, 0 = background.
    """

    name: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class Trial:
    """Who is learnt from, and the seed of everything else: the same for each initialisation, so trials are paired."""

    number: int
    seed: int
    labelled: tuple[LabelledScan, ...]


@dataclass(frozen=True)
class Split:
    """Scans to test on, the same in every trial, and the trials' draws from the other subjects."""

    test: tuple[LabelledScan, ...]
    trials: tuple[Trial, ...]
    num_pool_subjects: int

    @property
    def scans(self) -> list[LabelledScan]:
        """Every scan that is used, once, by name."""
        used = {scan.name: scan for trial in self.trials for scan in trial.labelled}
        return sorted({**used, **{scan.name: scan for scan in self.test}}.values(), key=lambda scan: scan.name)


def find_labelled(images: Path, labels: Path, subject_pattern: str | None) -> list[LabelledScan]:
    """Scans with a label map of the same name. Images without one are counted and left out.

    Raises ScanError if a label map has no image.
    """
    for kind, folder in (("images", images), ("labels", labels)):
        if not folder.is_dir():
            raise ScanError(f"{kind} folder {folder} does not exist or is not a folder: check --{kind}")
    there = {scan.source for scan in survey(images).scans}
    labelled = [scan.source for scan in survey(labels).scans]
    alone = [source for source in labelled if source not in there]
    if alone:
        raise ScanError(
            f"{len(alone)} of {len(labelled)} label maps in {labels} have no image of the same name in {images}, "
            f"{alone[0]} the first: add the images or remove the label maps"
        )
    if len(there) > len(labelled):
        say("finetune", f"{len(there) - len(labelled)} of {len(there)} images have no label map and are not used")
    return [
        LabelledScan(source, subject_in(source, subject_pattern), images / source, labels / source)
        for source in labelled
    ]


def pretrained_on(scans: Sequence[LabelledScan], workspace: Workspace, settings: Settings) -> set[str]:
    """Subjects who must not be tested on: whose scan's very file, or whose name, is among the training volumes'."""
    rows = read_catalogue(workspace.catalog)
    training, _ = split_by_subject(rows, settings.validation_fraction, settings.seed)
    seen = {row["volume_id"] for row in training}
    for store in (workspace.patterns, workspace.crops):
        if (store / "manifest.json").is_file():
            # What the encoder saw, should the seed or the archive have changed since.
            seen |= set(read_patterns(store, ["volume_id"], predicate(TRAINING))["volume_id"].to_pylist())
    # Only a file of a known size can be a known file: the others need no hashing.
    sizes = {row["source_bytes"] for row in rows}
    names = {row["subject_id"] for row in rows if row["volume_id"] in seen}
    identity = open_identity(workspace, settings.archive.keep_ids)
    return {
        scan.subject
        for scan in scans
        if identity.subject(scan.subject) in names
        or (scan.image.stat().st_size in sizes and file_fingerprint(scan.image) in seen)
    }


def split_scans(scans: Sequence[LabelledScan], seen: set[str], settings: Settings) -> Split:
    """Draw test subjects among those not `seen` in pretraining, and each trial's labelled subjects among the rest.

    `finetune.num_test` is an upper bound. Raises SettingsError if fewer than two can be tested on.
    """
    finetune = settings.finetune
    subjects = sorted({scan.subject for scan in scans})
    unseen = [subject for subject in subjects if subject not in seen]
    num_test = min(finetune.num_test, len(unseen), len(subjects) - finetune.num_labelled)
    if num_test < MIN_TEST_SUBJECTS:
        raise SettingsError(
            f"finetune.num_labelled={finetune.num_labelled} and finetune.num_test={finetune.num_test} cannot be met: "
            f"there are {len(subjects)} labelled subjects, {len(unseen)} of them unseen in pretraining, and testing "
            f"needs at least {MIN_TEST_SUBJECTS} unseen ones beside the labelled: add labelled scans of new subjects, "
            "or lower finetune.num_labelled"
        )
    tested = set(np.random.default_rng(settings.seed).permutation(unseen)[:num_test].tolist())
    pool = [subject for subject in subjects if subject not in tested]
    trials = []
    for number in range(finetune.num_trials):
        generator = np.random.default_rng((settings.seed, number))
        drawn = set(generator.permutation(pool)[: finetune.num_labelled].tolist())
        labelled = tuple(scan for scan in scans if scan.subject in drawn)
        trials.append(Trial(number, int(generator.integers(2**31)), labelled))
    return Split(tuple(scan for scan in scans if scan.subject in tested), tuple(trials), len(pool))


def common_spacing(scans: Sequence[LabelledScan], settings: Settings) -> tuple[float, ...]:
    """Voxel size in mm, z y x (2D: y x), of every case: `finetune.spacing_mm`, or the scans' median."""
    chosen = settings.finetune.spacing_mm
    if chosen is not None:
        return chosen
    spacings = [_named(read_geometry, scan.image, settings.ndim)[1] for scan in scans]
    return tuple(np.median(spacings, axis=0).tolist())


def read_case(
    scan: LabelledScan, spacing_mm: Sequence[float], patch_shape: Sequence[int], intensity: IntensitySettings
) -> tuple[Case, list[int]]:
    """A case resampled to `spacing_mm` and padded to at least `patch_shape`, and its label values.

    The scan's extent is kept, so its voxels differ from `spacing_mm` by the rounding to whole voxels.
    Raises ScanError if the files cannot be read or do not lie on each other.
    """
    image = _named(read_volume, scan.image, len(patch_shape))
    label = _named(read_volume, scan.label, len(patch_shape))
    _check_aligned(scan, image, label)
    low, high = percentiles(image.voxels)
    row = {"low": [low], "high": [high], "slope": image.slope, "intercept": image.intercept}
    voxels = normalise(image.voxels, *limits(row, intensity))
    shape = voxels.shape
    wanted = [
        max(1, round(side * step / target))
        for side, step, target in zip(shape, image.spacing_mm, spacing_mm, strict=True)
    ]
    voxels = resample(voxels, [axis_weights(n, num_out, 0, n)[1] for n, num_out in zip(shape, wanted, strict=True)])
    nearest = [((np.arange(num_out) + 0.5) * n / num_out).astype(int) for n, num_out in zip(shape, wanted, strict=True)]
    classes = _classes(scan, label)[np.ix_(*nearest)]
    missing = [max(0, side - length) for side, length in zip(patch_shape, wanted, strict=True)]
    padding = [(space // 2, space - space // 2) for space in missing]
    return Case(scan.name, np.pad(voxels, padding), np.pad(classes, padding)), np.unique(classes).tolist()


def check_classes(values: set[int]) -> int:
    """Number of classes, background included, of label maps that hold `values`. Raises ScanError unless 0, 1, 2, …"""
    if len(values) < 2 or values != set(range(len(values))):
        raise ScanError(
            f"the label maps hold the values {sorted(values)}: number the classes 0 (background), 1, 2, … without a gap"
        )
    return len(values)


def _named(read: Callable[[Path, int], Any], path: Path, ndim: int) -> Any:
    """What `read` makes of a file; its errors do not say which file it was."""
    try:
        return read(path, ndim)
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from None


def _check_aligned(scan: LabelledScan, image: Volume, label: Volume) -> None:
    if image.voxels.shape != label.voxels.shape:
        raise ScanError(
            f"{scan.label} has {_times(label.voxels.shape)} voxels and its image {_times(image.voxels.shape)}: give a "
            "label map on the image's grid"
        )
    far = np.array([*image.voxels.shape[::-1], 1, 1][:3])
    corners = np.array([[0, 0, 0, 1], [*far, 1]]).T
    apart = np.abs((image.affine - label.affine) @ corners)[:3].max()
    if apart > min(image.spacing_mm) / 2:
        raise ScanError(
            f"{scan.label} lies up to {apart:.1f} mm beside its image by their headers: give a label map on the "
            "image's grid"
        )


def _classes(scan: LabelledScan, label: Volume) -> NDArray[np.uint8]:
    values = label.voxels * label.slope + label.intercept
    classes = values.round().astype(np.uint8)
    if not np.array_equal(classes, values):
        raise ScanError(f"{scan.label} holds other values than whole numbers from 0 to 255: it is not a label map")
    return classes


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
