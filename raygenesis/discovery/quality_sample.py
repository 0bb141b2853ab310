"""Measuring on a sample of patients whether neighbours' patterns are alike (`quality.py` says by how much)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import CatalogueRow, read_catalogue
from raygenesis.cluster import fan_out
from raygenesis.cluster.progress import progress, say
from raygenesis.discovery.cubes import crop_cubes, origin_of, size_mm
from raygenesis.discovery.patients import Patients
from raygenesis.discovery.quality import NUM_RANDOM, MeasuredVisit, likeness, quality_of, sampled_ranks
from raygenesis.discovery.references import Correspondence, Reference
from raygenesis.errors import ScanError
from raygenesis.patterns.schema import TRAINING
from raygenesis.settings import DiscoverySettings, IntensitySettings
from raygenesis.settings.streams import RANDOM_PATIENTS
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import Quality
from raygenesis.workspace.workspace import Workspace

MOST_REFERENCES = 4
MOST_COORDINATES = 12


@dataclass(frozen=True)
class Neighbourhood:
    """A reference and the numbers of its neighbours, nearest first, itself the first of the training ones.

    patients: of its group.
    """

    reference: Reference
    patients: Patients
    training: Sequence[int]
    validation: Sequence[int]


def measure_quality(
    workspace: Workspace,
    neighbourhoods: Sequence[Neighbourhood],
    discovery: DiscoverySettings,
    intensity: IntensitySettings,
    seed: int,
) -> Quality:
    """How alike the patterns of neighbours are, and of random patients, on a sample; prints what it found."""
    sample = neighbourhoods[:MOST_REFERENCES]
    visits = []
    for number, one in enumerate(sample):
        patients = one.patients
        others = patients.eligible(TRAINING) & ~np.isin(patients.subjects, patients.subjects[one.training])
        random = RANDOM_PATIENTS.generator(seed, number).permutation(np.flatnonzero(others))[:NUM_RANDOM]
        pairs = [(rank, one.training[rank]) for rank in sampled_ranks(len(one.training))]
        pairs += [(-1, int(other)) for other in random]
        names = patients.names([patient for _, patient in pairs])
        visits += [(number, rank, name) for (rank, _), name in zip(pairs, names, strict=True)]
    rows = {row["volume_id"]: row for row in read_catalogue(workspace.catalog, {name for *_, name in visits})}
    asked = [(number, rank, rows[name]) for number, rank, name in visits]
    cropper = PlainCropper(workspace.volumes, discovery, intensity)
    compared = [(one.reference, cropper.cubes(one.reference.row, one.reference)) for one in sample]
    measured: list[MeasuredVisit] = []
    with progress("quality", len(asked), "patients") as ticker:
        for visit in fan_out.each(_measure, asked, compared, cropper):
            measured += visit
            ticker.advance()
    measured.sort(key=lambda visit: (visit.reference, visit.rank, visit.within))
    quality = quality_of(measured, discovery.num_neighbours)
    _summarise(quality)
    return quality


@dataclass(frozen=True)
class PlainCropper:
    """Crops the first coordinates of a scan without jitter. volumes: the folder of the archive's volumes."""

    volumes: Place
    discovery: DiscoverySettings
    intensity: IntensitySettings

    def cubes(self, row: CatalogueRow, reference: Reference) -> NDArray[np.float32] | None:
        """A reference's coordinates in a scan: [C, voxels]; None of a damaged scan, which cropping will report."""
        extent = np.array(self.discovery.scales[0].extent_mm)
        try:
            correspondence = Correspondence(self.volumes, row, self.discovery, self.intensity)
            centres = correspondence.centres_mm(reference)[:MOST_COORDINATES]
            boxes = [(origin_of(centre, extent, size_mm(row)), extent) for centre in centres]
            cubes = crop_cubes(self.volumes, row, boxes, self.discovery.cube_shape, self.intensity)
        except ScanError:
            return None
        return np.stack([cube.ravel() for cube in cubes])


def _measure(
    asked: tuple[int, int, CatalogueRow],
    references: Sequence[tuple[Reference, NDArray[np.float32] | None]],
    cropper: PlainCropper,
) -> list[MeasuredVisit]:
    """Likeness of one patient's patterns to a reference's; nothing where one of the scans is damaged."""
    number, rank, row = asked
    reference, anchors = references[number]
    cubes = None if anchors is None else cropper.cubes(row, reference)
    if anchors is None or cubes is None:
        return []
    return [MeasuredVisit(number, rank, *likeness(anchors, cubes))]


def _summarise(quality: Quality) -> None:
    like, unlike = quality.neighbours, quality.random
    if like.num_patients:
        compared_to = ", with no other patients to compare"
        if unlike.num_patients:
            compared_to = f", other random patients' by {unlike.within:.3f}"
        say(
            "discover",
            f"patterns of one class correlate with the reference's by {like.within:.3f}{compared_to}; "
            f"of different classes by {like.between:.3f}",
        )
    if quality.warning is not None:
        say("discover", f"warning: {quality.warning}")
