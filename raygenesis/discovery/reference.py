"""A reference patient: its coordinates, and where they lie in another scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.source import read_coarse
from raygenesis.archive.store import level_shape
from raygenesis.discovery.alignment import align
from raygenesis.discovery.coordinates import CoordinateError, Frame, candidates, corresponding, frame_of, spread
from raygenesis.discovery.cubes import size_mm
from raygenesis.settings import Settings
from raygenesis.text.amounts import sides
from raygenesis.workspace.files import Place


@dataclass(frozen=True)
class Reference:
    """A catalogue row, the C coordinates [C, ndim] in mm from its corner, and what is needed to find them elsewhere.

    scan: its coarse level, float32 in [0, 1]; None where nothing is aligned to it.
    """

    row: Mapping[str, Any]
    centres_mm: NDArray[np.float64]
    frame: Frame
    scan: NDArray[np.float32] | None


def choose_coordinates(volumes: Place, row: Mapping[str, Any], number: int, settings: Settings) -> Reference:
    """Reference `number`, with coordinates that cover it. Raises CoordinateError if they do not fit."""
    size = size_mm(row)
    scan = _coarse(volumes, row, settings)
    places = candidates(scan, size / np.array(scan.shape), size, settings.discovery)
    generator = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(2, number)))
    try:
        centres = spread(places, settings.discovery.num_coordinates, settings.discovery.min_distance_mm, generator)
    except CoordinateError as error:
        raise CoordinateError(f"reference scan {row['source']} ({sides(size)} mm): {error}") from None
    return Reference(row, centres, frame_of(scan, size), scan if settings.discovery.alignment != "none" else None)


class Correspondence:
    """Finds references' coordinates in one scan, whose coarse level is read once, and only if it is needed."""

    def __init__(self, volumes: Place, row: Mapping[str, Any], settings: Settings) -> None:
        self._row, self._discovery = row, settings.discovery
        self._size = size_mm(row)
        self._scan = None
        if self._discovery.alignment != "none" or self._discovery.correspondence == "physical":
            self._scan = _coarse(volumes, row, settings)

    def centres_mm(self, reference: Reference) -> NDArray[np.float64]:
        """The reference's coordinates in this scan, [C, ndim] in mm from its corner.

        Raises ScanError if the scan cannot be aligned.
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


def _coarse(volumes: Place, row: Mapping[str, Any], settings: Settings) -> NDArray[np.float32]:
    return read_coarse(volumes, row, level_shape(row, -1), settings.intensity)
