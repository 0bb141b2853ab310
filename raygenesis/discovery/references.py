"""Reference patients: who they are, their coordinates, and where these lie in another scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import CatalogueRow
from raygenesis.archive.coarse import read_coarse
from raygenesis.archive.store import level_shape
from raygenesis.discovery.alignment import align
from raygenesis.discovery.coordinates import CoordinateError, Frame, candidates, corresponding, frame_of, spread
from raygenesis.discovery.cubes import size_mm
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.patients import Patients
from raygenesis.patterns.schema import TRAINING
from raygenesis.settings import DiscoverySettings, IntensitySettings
from raygenesis.settings.streams import COORDINATES, REFERENCES
from raygenesis.text.amounts import sides
from raygenesis.workspace.files import Place

# References are spread among at most so many patients, and drawn among this many more than are needed.
MOST_SPREAD = 20_000
SPARE_DRAWN = 32


def choose_references(
    patients: Patients,
    embeddings: Embeddings,
    least_distance: float,
    discovery: DiscoverySettings,
    seed: int,
    spare: int = 0,
) -> list[int]:
    """Numbers of R + spare training volumes of different subjects, drawn by seed; the first few are those for fewer.

    None is a near-duplicate, at `least_distance` or nearer, of one before it; there may then be fewer.
    `discovery.reference_choice=spread`: the first is drawn, and each further one is the patient farthest from all
    before it (among at most MOST_SPREAD drawn ones).
    """
    drawn = REFERENCES.generator(seed).permutation(np.flatnonzero(patients.eligible(TRAINING)))
    _, first = np.unique(patients.subjects[drawn], return_index=True)
    drawn = drawn[np.sort(first)]
    count = discovery.num_references + spare
    if discovery.reference_choice == "random":
        drawn = drawn[: 2 * count + SPARE_DRAWN]
        vectors = embeddings.take(drawn)
        kept: list[int] = []
        for number, vector in enumerate(vectors):
            if len(kept) < count and not (np.linalg.norm(vectors[kept] - vector, axis=1) <= least_distance).any():
                kept.append(number)
        return drawn[kept].tolist()
    drawn = drawn[:MOST_SPREAD]
    vectors = embeddings.take(drawn)
    chosen, distance = [0], np.full(len(drawn), np.inf)
    while len(chosen) < min(count, len(drawn)):
        distance = np.minimum(distance, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
        distance[chosen[-1]] = -np.inf  # never again, though all be alike
        if distance.max() <= least_distance:
            break
        chosen.append(int(distance.argmax()))
    return drawn[chosen].tolist()


@dataclass(frozen=True)
class Reference:
    """A reference patient's catalogue row, its coordinates, and what is needed to find them elsewhere.

    centres_mm: float64 [C, ndim] from the scan's corner; scan: its coarse level, float32 in [0, 1]; None where nothing
    is aligned to it.
    """

    row: CatalogueRow
    centres_mm: NDArray[np.float64]
    frame: Frame
    scan: NDArray[np.float32] | None


def choose_coordinates(
    volumes: Place,
    row: CatalogueRow,
    number: int,
    discovery: DiscoverySettings,
    intensity: IntensitySettings,
    seed: int,
) -> Reference:
    """Reference `number`, with coordinates that cover it.

    volumes: the folder of the archive's volumes. Raises CoordinateError if the coordinates do not fit, ScanError if the
    scan is damaged.
    """
    size = size_mm(row)
    scan = _coarse(volumes, row, intensity)
    places = candidates(scan, size / np.array(scan.shape), size, discovery)
    generator = COORDINATES.generator(seed, number)
    try:
        centres = spread(places, discovery.num_coordinates, discovery.min_distance_mm, generator)
    except CoordinateError as error:
        raise CoordinateError(f"reference scan {row['source']} ({sides(size)} mm): {error}") from None
    return Reference(row, centres, frame_of(scan, size), scan if discovery.alignment != "none" else None)


class Correspondence:
    """Finds references' coordinates in one scan, whose coarse level is read once, and only if it is needed.

    Raises ScanError if the scan is damaged.
    """

    def __init__(
        self, volumes: Place, row: CatalogueRow, discovery: DiscoverySettings, intensity: IntensitySettings
    ) -> None:
        self._row, self._discovery = row, discovery
        self._size = size_mm(row)
        self._scan = None
        if discovery.alignment != "none" or discovery.correspondence == "physical":
            self._scan = _coarse(volumes, row, intensity)

    def centres_mm(self, reference: Reference) -> NDArray[np.float64]:
        """The reference's coordinates in this scan, float64 [C, ndim] in mm from its corner.

        Raises AlignmentError if the scan cannot be aligned.
        """
        if reference.row["volume_id"] == self._row["volume_id"]:
            return reference.centres_mm
        if self._discovery.alignment != "none":
            assert reference.scan is not None and self._scan is not None
            steps = reference.frame.size_mm / reference.scan.shape, self._size / self._scan.shape
            aligned = align(reference.scan, steps[0], self._scan, steps[1], self._discovery.alignment)
            return aligned.corresponding(reference.centres_mm)
        frame = Frame(self._size, self._size / 2) if self._scan is None else frame_of(self._scan, self._size)
        return corresponding(reference.centres_mm, reference.frame, frame, self._discovery.correspondence)


def _coarse(volumes: Place, row: CatalogueRow, intensity: IntensitySettings) -> NDArray[np.float32]:
    return read_coarse(volumes, row, level_shape(row, -1), intensity)
