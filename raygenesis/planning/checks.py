"""Whether settings fit the scans, from the scans' headers, before any work starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raygenesis.archive.catalogue import num_held_out
from raygenesis.archive.formats.readers import read_scan_geometry
from raygenesis.archive.intake.identity import name_for_log, subject_of
from raygenesis.archive.intake.survey import Scan
from raygenesis.discovery.coordinates import largest_extent
from raygenesis.discovery.patients import check_counts
from raygenesis.errors import ScanError, SettingsError
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.stores import check_pretext
from raygenesis.settings import ArchiveSettings, DiscoverySettings, PretrainingSettings
from raygenesis.text.amounts import sides
from raygenesis.workspace.artifacts import PATTERNS

# Headers looked at before any work starts; of more scans an even sample.
MAX_HEADERS = 1000

Millimetres = NDArray[np.float64]


def check_settings(
    found: Sequence[Scan], scans: Path, archive: ArchiveSettings, discovery: DiscoverySettings,
    pretraining: PretrainingSettings, validation_fraction: float,
) -> None:  # fmt: skip
    """Compare settings with the headers of the scans found in a folder.

    Raises SettingsError, naming the key and the remedy, if a stage would refuse them.
    """
    check_pretext(pretraining, discovery)
    discovers = pretext_of(pretraining).store == PATTERNS
    if discovers:
        subjects = {subject_of(scan, archive.subject_pattern) for scan in found}
        held_out = num_held_out(len(subjects), validation_fraction)
        share = f"validation_fraction={validation_fraction:g} of them held out"
        where = f"in {scans} ({len(subjects)} subjects, {share})"
        check_counts(len(subjects) - held_out, held_out, where, discovery)
    ndim = len(discovery.cube_shape)
    every = _sizes_mm(found, scans, ndim, archive)
    sizes = {source: size for source, size in every.items() if len(size) == ndim}
    if every and not sizes:
        raise SettingsError(
            f"discovery.cube_shape asks for {ndim}D, and of the {len(every)} scans that were looked at in "
            f"{scans} none is: choose a preset of their dimensions (--preset), or a folder of {ndim}D scans"
        )
    if sizes:
        _check_crops(sizes, discovery, discovers)


def _sizes_mm(found: Sequence[Scan], scans: Path, ndim: int, archive: ArchiveSettings) -> dict[str, Millimetres]:
    """Physical sizes in mm of scans by source; of one of several volumes that of one with the wanted dimensions."""
    step = math.ceil(len(found) / MAX_HEADERS)
    sizes = {}
    for scan in found[::step]:
        try:
            geometry = read_scan_geometry(
                [scans / file.path for file in scan.files], archive.fourth_axis, archive.uneven
            )
        except (ScanError, OSError, MemoryError):
            continue  # ingest records it as a failure
        for shape, spacing in sorted(geometry, key=lambda volume: len(volume[0]) == ndim):
            sizes[scan.source] = np.array(shape) * np.array(spacing)
    return sizes


def _check_crops(sizes: Mapping[str, Millimetres], settings: DiscoverySettings, discovers: bool) -> None:
    """Refuse crops that are larger than all scans, and coordinates that do not fit in the smallest scan."""
    reach = np.array(largest_extent(settings.scales))
    by_volume = sorted(sizes.items(), key=lambda item: float(np.prod(item[1])))
    roomy = [(source, size) for source, size in by_volume if (size >= reach - 1e-6).all()]
    if not roomy:
        source, size = by_volume[-1]
        raise SettingsError(
            f"discovery.scales: the largest crop spans {sides(reach)} mm and no scan is that large (the largest, "
            f"{name_for_log(source)}, is {sides(size)} mm): lower extent_mm"
        )
    if discovers:
        _check_room(*roomy[0], reach, settings)


def _check_room(source: str, size: Millimetres, reach: Millimetres, settings: DiscoverySettings) -> None:
    """Refuse more coordinates than balls of their least distance can be packed where a crop's centre may lie."""
    distance, count = settings.min_distance_mm, settings.num_coordinates
    if distance == 0:
        return
    room = np.prod(size - reach + distance)
    ball = math.pi * distance**2 / 4 if len(size) == 2 else math.pi * distance**3 / 6
    most = max(1, math.floor(room / ball))
    if count > most:
        raise SettingsError(
            f"discovery.num_coordinates={count} does not fit in the smallest scan ({name_for_log(source)}, "
            f"{sides(size)} mm): at most {most} places discovery.min_distance_mm={distance:g} apart leave room for "
            f"crops of {sides(reach)} mm; lower one of the two, or the scales' extent_mm"
        )
