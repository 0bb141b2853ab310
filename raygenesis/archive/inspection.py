"""Looking into an archive: what it holds, whether it is whole, and what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raygenesis.archive.catalogue import (
    CATALOGUE,
    CatalogueRow,
    CatalogueRows,
    read_catalogue,
    read_columns,
    strings,
    voxel_bytes,
)
from raygenesis.archive.facts import Span, archive_facts
from raygenesis.archive.intake.known_files import paths_of
from raygenesis.archive.intake.take_in import voxel_fingerprint
from raygenesis.archive.intensity import limits, normalise
from raygenesis.archive.store import halve, level_shape, open_level, read_array, read_record, read_region, volume_folder
from raygenesis.cluster.progress import progress, say
from raygenesis.errors import ScanError, SettingsError, WorkspaceError
from raygenesis.settings import IntensitySettings
from raygenesis.text.amounts import size
from raygenesis.workspace.artifacts import ARCHIVE
from raygenesis.workspace.failures import NUMBER, FailureRow, every_failure, grouped, read_failures
from raygenesis.workspace.files import Place
from raygenesis.workspace.workspace import Workspace

VOLUMES_PER_BLOCK = 8
TILE_PIXELS = 128
# Room for the longest volume id and a modality below a tile, and for the line that they are in.
CAPTION_WIDTH, CAPTION_HEIGHT = 144, 14


def info(workspace: Workspace, list_failures: bool = False) -> list[str]:
    """Lines that say what an archive holds: counts, modalities, sizes, spacings, doubts and failures by cause.

    list_failures: give each failure on its own, those of later stages too. Raises WorkspaceError without an archive.
    """
    facts = archive_facts(workspace)
    lines = [
        f"{facts.num_volumes} volumes of {facts.num_subjects} subjects, {facts.num_failures} failures; "
        f"{size(facts.source_bytes)} of files, {size(facts.voxel_bytes)} of voxels, {size(facts.stored_bytes)} stored "
        "with pyramids",
    ]
    for ndim, members in facts.dimensions.items():
        lines.append(f"{ndim}D: {members.num_volumes} volumes")
        lines += [
            f"  {name}: {_text(axis.voxels)} voxels of {_text(axis.spacing_mm)} mm, {_text(axis.extent_mm)} mm"
            for name, axis in members.axes.items()
        ]
    values: dict[str, Mapping[Any, int]] = {
        "modality": facts.modalities, "type": facts.dtypes, "channels": facts.num_channels
    }  # fmt: skip
    for title, counts in values.items():
        lines.append(f"{title}: " + ", ".join(f"{value or 'not said'} {count}" for value, count in counts.items()))
    for title, kinds in {"corrected": facts.corrections, "assumed": facts.notes}.items():
        lines += [f"{title}: {count} × {text}" for text, count in kinds.items()]
    if not list_failures:
        return lines + failure_lines(workspace, read_failures(workspace.archive))
    for stage, failures in every_failure(workspace).items():
        prefix = "failed" if stage == ARCHIVE.name else f"failed in {stage}"
        lines += failure_lines(workspace, failures, each=True, prefix=prefix)
    return lines


def _text(span: Span) -> str:
    if span.least == span.most:
        return f"{span.least:.4g}"
    return f"{span.least:.4g} to {span.most:.4g} (median {span.median:.4g})"


def failure_lines(
    workspace: Workspace, failures: Sequence[FailureRow], each: bool = False, prefix: str = "failed"
) -> list[str]:
    """Lines about failures, those of one cause together or `each` on its own; by path where it is known."""
    paths = paths_of(workspace.private, failures)
    named: list[FailureRow] = [
        {"source": paths.get(row["source"], row["source"]), "reason": row["reason"]} for row in failures
    ]
    named.sort(key=itemgetter("source", "reason"))
    lines = []
    for reason, sources in [(row["reason"], [row["source"]]) for row in named] if each else grouped(named):
        why = NUMBER.sub(lambda found: paths.get(found[0], found[0]), reason)
        count = "" if each else f"{len(sources)} × "
        lines.append(f"{prefix}: {count}{why} [{sources[0]}{', …' if len(sources) > 1 else ''}]")
    return lines


def verify(workspace: Workspace) -> int:
    """Read everything again and compare it with the catalogue; returns the number of volumes.

    Checks each volume's record, every chunk's checksum, the voxels' fingerprint, and every level against the one below.
    Raises WorkspaceError naming what is damaged.
    """
    from raygenesis.cluster import fan_out  # `info` and `show` need no Ray

    ARCHIVE.require(workspace.archive)
    table = read_columns(workspace.catalog, ["volume_id", "shape", "num_channels", "dtype"])
    ids, volumes = table["volume_id"], workspace.volumes
    blocks = (
        CatalogueRows(workspace.catalog, ids.slice(start, VOLUMES_PER_BLOCK).to_pylist())
        for start in range(0, len(ids), VOLUMES_PER_BLOCK)
    )
    faults: list[str] = []
    with progress("verify", len(ids), "volumes") as ticker:
        for num_volumes, found in fan_out.each(_faults_of, blocks, volumes):
            faults += found
            ticker.advance(num_volumes, note=f"{len(faults)} damaged")
    known = {volume_folder(volumes, volume_id).name for volume_id in strings(ids)}
    strangers = sorted(folder.name for folder in volumes.iterdir() if folder.name not in known)
    for fault in sorted(faults):
        say("verify", fault)
    for stranger in strangers:
        say("verify", f"{stranger} is not in the catalogue: remove it if nobody needs it")
    if faults:
        raise WorkspaceError(
            f"{len(faults)} of {len(ids)} volumes in {workspace.archive} are damaged, {min(faults)}: remove their "
            "folders below volumes/ and ingest again"
        )
    say("verify", f"{len(ids)} volumes are whole, {size(voxel_bytes(table))} of voxels read")
    return len(ids)


def _faults_of(rows: CatalogueRows, volumes: Place) -> tuple[int, list[str]]:
    """How many volumes were looked at, and what is wrong with which."""
    faults = [(row["volume_id"], fault_of(volumes, row)) for row in rows]
    return len(faults), [f"{volume_id}: {fault}" for volume_id, fault in faults if fault]


def fault_of(volumes: Place, row: CatalogueRow) -> str:
    """What is wrong with a stored volume, or an empty string."""
    folder = volume_folder(volumes, row["volume_id"])
    record = read_record(folder)
    if record is None:
        return "its zarr.json is missing or damaged"
    differing = [name for name in record.keys() & set(CATALOGUE.names) if record[name] != row[name]]  # type: ignore[literal-required]
    if differing:
        return f"its record and the catalogue differ in {', '.join(sorted(differing))}"
    try:
        below: NDArray[Any] | None = None
        for level, factors in enumerate(row["levels"]):
            (voxels,) = read_array(open_level(folder, level), [None], f"level {level}")
            if below is None:
                if voxel_fingerprint(voxels) != row["voxel_fingerprint"]:
                    return "its voxels are not those that were stored"
            else:
                steps = [now // before for now, before in zip(factors, row["levels"][level - 1], strict=True)]
                if not np.array_equal(voxels, halve(below, (1,) * (voxels.ndim - len(steps)) + tuple(steps))):
                    return f"level {level} is not made from level {level - 1}"
            below = voxels
    except ScanError as error:
        return str(error)
    return ""


def show(workspace: Workspace, path: Path, num_volumes: int = 64) -> int:
    """Write a contact sheet (PNG) of the axial mid-slices of volumes evenly chosen by id; returns how many."""
    ARCHIVE.require(workspace.archive)
    ids = read_columns(workspace.catalog, ["volume_id"])["volume_id"]
    places = np.unique(np.linspace(0, len(ids) - 1, num_volumes).astype(int))
    chosen = read_catalogue(workspace.catalog, ids.take(pa.array(places)).to_pylist())
    columns = max(1, int(np.ceil(np.sqrt(len(chosen)))))
    width, height = CAPTION_WIDTH, TILE_PIXELS + CAPTION_HEIGHT
    sheet = Image.new("L", (columns * width, -(-len(chosen) // columns) * height))
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(chosen):
        corner = (number % columns * width, number // columns * height)
        try:
            shown = Image.fromarray(mid_slice(workspace.volumes, row))
            sheet.paste(shown, (corner[0] + (TILE_PIXELS - shown.width) // 2, corner[1]))
        except ScanError:
            draw.text((corner[0] + 2, corner[1] + 2), "not shown", fill=255)
        digits, dash, part = row["volume_id"].partition("-")  # half of the digits tell volumes apart
        caption = f"{digits[:16]}{dash}{part} {row['modality']}"
        draw.text((corner[0] + 2, corner[1] + TILE_PIXELS), caption, fill=200)
    write_sheet(sheet, path)
    say("show", f"{len(chosen)} of {len(ids)} volumes → {path}")
    return len(chosen)


def mid_slice(volumes: Place, row: CatalogueRow) -> NDArray[np.uint8]:
    """The axial mid-slice of a volume (2D: the image) as displayed: front up, the patient's right on the left."""
    spacing, levels = row["spacing_mm"], row["levels"]
    fine = [n for n, level in enumerate(levels) if min(np.array(row["shape"]) / level) >= TILE_PIXELS]
    level = max(fine, default=0)
    sides = level_shape(row, level)
    region = [slice(0, side) for side in sides]
    if len(sides) == 3:
        region[0] = slice(sides[0] // 2, sides[0] // 2 + 1)
    voxels = read_region(volume_folder(volumes, row["volume_id"]), level, tuple(region))
    image = normalise(voxels.reshape(voxels.shape[-2:]), *limits(row, IntensitySettings()))
    size_mm = [side * step * factor for side, step, factor in zip(sides, spacing, levels[level], strict=True)]
    return tile((image * 255).astype(np.uint8), size_mm[-2:])


def tile(image: NDArray[np.uint8], size_mm: Sequence[float]) -> NDArray[np.uint8]:
    """A slice [y, x] of so many mm as it is displayed, in its true proportions: front up, right on the left."""
    height, width = size_mm
    scale = TILE_PIXELS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = Image.fromarray(np.ascontiguousarray(image[::-1, ::-1]))
    return np.asarray(shown.resize(size, Image.Resampling.BILINEAR))


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet as PNG. Raises SettingsError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as error:
        raise SettingsError(f"--output {path} cannot be written ({error.strerror}): give the name of a PNG") from None
