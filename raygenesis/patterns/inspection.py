"""Looking into a pattern store: what it holds, whether it is whole, and what its patterns look like."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raygenesis.archive.inspection import TILE_PIXELS, failure_lines, tile, write_sheet
from raygenesis.cluster.progress import progress, say
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.cells import DTYPE, decode, decode_steps
from raygenesis.patterns.reader import made_by, predicate, read_patterns, store_manifest, who_checks
from raygenesis.patterns.schema import PATTERN, TRAINING, UNLABELLED, VALIDATION
from raygenesis.patterns.writer import checksum, part_path
from raygenesis.text.amounts import size
from raygenesis.workspace.failures import read_failures
from raygenesis.workspace.files import Place, on_disk
from raygenesis.workspace.manifest import Checksum, StoreCounts, StoreManifest
from raygenesis.workspace.workspace import Workspace

MOST_COLUMNS = 10  # of a contact sheet
CAPTION_PIXELS = 14
MARGIN_PIXELS = 96

CHECKED_COLUMNS = ["pattern_id", "label", "reference", "coordinate", "split", "cube"]


def info(workspace: Workspace, store: str = "patterns") -> list[str]:
    """Lines that say what a store holds: counts, classes, scales, bytes, speed of writing, failures by reason.

    store: "patterns", or "crops" for the random ones.
    """
    folder = _folder(workspace, store)
    manifest = store_manifest(folder)
    counts, raw, stored = manifest.counts, manifest.raw_bytes, manifest.bytes
    seconds = max(manifest.seconds, 1e-3)
    scales = manifest.settings["discovery"]["scales"]
    classes = (
        f"{counts.references * counts.coordinates} classes: {counts.references} references × "
        f"{counts.coordinates} coordinates; {counts.neighbours} neighbours"
    )
    if not counts.references:
        classes = f"no classes: {counts.coordinates} random crops a scan, {counts.neighbours} training scans"
    lines = [
        f"{counts.patterns} patterns: {counts.patterns - counts.validation} training, {counts.validation} validation",
        classes,
        f"{len(scales)} scales: " + ", ".join(f"{_sides(scale['extent_mm'])} mm" for scale in scales),
        f"cubes of {_sides(manifest.cube_shape)}, {manifest.cube_dtype} in {manifest.cube_steps} steps",
        f"{counts.volumes} volumes, {counts.parts} parts",
        f"{size(raw)} raw, {size(stored)} on disk, {raw / max(stored, 1):.2f} to 1",
        f"{manifest.seconds:.1f} s: {counts.patterns / seconds:.1f} patterns/s, {size(raw / seconds)}/s raw",
        f"{counts.failures} failures",
    ]
    return lines + failure_lines(workspace, read_failures(folder))


def _folder(workspace: Workspace, store: str) -> Place:
    return {"patterns": workspace.patterns, "crops": workspace.crops}[store]


def _sides(sides: Sequence[float]) -> str:
    return "×".join(f"{side:g}" for side in sides)


@dataclass(frozen=True)
class PartCheck:
    """What reading a part again showed: what is wrong with it, if anything, and what it holds."""

    fault: str = ""
    pattern_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    num_validation: int = 0


def verify(workspace: Workspace, store: str = "patterns") -> int:
    """Read every part again and compare it with the manifest; returns the number of patterns.

    Checks each part's checksum, columns, labels and cells, that ids are unique, and the counts. Raises WorkspaceError
    naming what is damaged and how to mend it.
    """
    folder = _folder(workspace, store)
    manifest = store_manifest(folder)
    counts, written = manifest.counts, manifest.parts
    if len(written) != counts.parts:
        raise WorkspaceError(
            f"{folder / 'manifest.json'} does not hold a checksum of each of its {counts.parts} parts (an earlier "
            f"version wrote it, or it was changed): remove it and run `raygenesis {made_by(folder)}`"
        )
    paths = [part_path(folder, part) for part in range(len(written))]
    checks = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("verify", len(paths), "parts") as ticker:
        for check in pool.map(check_part, paths, written, [manifest] * len(paths)):
            checks.append(check)
            ticker.advance(note=f"{sum(bool(check.fault) for check in checks)} damaged")
    faults = {path.name: check.fault for path, check in zip(paths, checks, strict=True) if check.fault}
    for part in _parts_that_repeat([check.pattern_ids for check in checks]):
        faults.setdefault(paths[part].name, "ids of its patterns are there twice")
    for name, fault in faults.items():
        say("verify", f"{name}: {fault}")
    for stranger in sorted({path.name for path in folder.glob("part-*.parquet")} - {path.name for path in paths}):
        say("verify", f"{stranger} is no part of the store: remove it if nobody needs it")
    if faults:
        first = min(faults)
        raise WorkspaceError(
            f"{len(faults)} of {len(paths)} parts in {folder} are damaged, {first}: {faults[first]}: remove the parts "
            f"named above and manifest.json there, then run `raygenesis {made_by(folder)}`"
        )
    _check_counts(folder, counts, checks)
    cubes = size(manifest.raw_bytes)
    say("verify", f"{counts.patterns} patterns in {len(paths)} parts are whole, {cubes} of cubes read")
    return counts.patterns


def check_part(path: Place, written: Checksum, manifest: StoreManifest) -> PartCheck:
    """Read one part again; `written` is what the manifest says of the file."""
    try:
        with on_disk(path) as local:
            return _read_again(local, written, manifest)
    except FileNotFoundError:
        return PartCheck("it is missing")
    except (ValueError, RuntimeError, OSError) as error:
        return PartCheck(str(error).splitlines()[0])


def _read_again(path: Path, written: Checksum, manifest: StoreManifest) -> PartCheck:
    """Raises ValueError, or what Arrow and blosc raise, saying what is wrong."""
    found = checksum(path)
    if found.bytes != written.bytes:
        raise ValueError(f"it has {found.bytes} bytes, and {written.bytes} were written")
    if found.xxh3 != written.xxh3:
        raise ValueError(f"its checksum is {found.xxh3}, and {written.xxh3} was written")
    file = pq.ParquetFile(path)
    if not file.schema_arrow.equals(PATTERN):
        raise ValueError("its columns are not those of a pattern store")
    steps = np.empty(manifest.cube_shape, DTYPE)
    ids, num_validation = [np.empty(0, np.int64)], 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=CHECKED_COLUMNS, use_threads=False)
        _check_labels(table, manifest.counts)
        for pattern_id, cell in zip(table["pattern_id"], table["cube"], strict=True):
            try:
                decode_steps(memoryview(cell.as_buffer()), steps)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"pattern {pattern_id}: {error}") from None
        ids.append(table["pattern_id"].to_numpy())
        num_validation += table["split"].to_pylist().count(VALIDATION)
    return PartCheck("", np.concatenate(ids), num_validation)


def _check_labels(table: pa.Table, counts: StoreCounts) -> None:
    """Raise ValueError if a label is not that of its reference and coordinate, or a split is unknown.

    Random crops have neither label nor reference.
    """
    ids, labels, references, coordinates = (table[name].to_numpy() for name in CHECKED_COLUMNS[:4])
    if counts.references:
        right = labels == references.astype(np.int64) * counts.coordinates + coordinates
        right &= (references >= 0) & (references < counts.references)
    else:
        right = (labels == UNLABELLED) & (references == UNLABELLED)
    right &= (coordinates >= 0) & (coordinates < counts.coordinates)
    if not right.all():
        wrong = int(np.argmin(right))
        raise ValueError(
            f"pattern {ids[wrong]} of reference {references[wrong]} and coordinate {coordinates[wrong]} has the label "
            f"{labels[wrong]}"
        )
    unknown = set(table["split"].to_pylist()) - {TRAINING, VALIDATION}
    if unknown:
        raise ValueError(f"split {min(unknown, key=str)!r} is unknown")


def _parts_that_repeat(pattern_ids: Sequence[NDArray[np.int64]]) -> list[int]:
    """Numbers of the parts that hold an id which they, or an earlier part, hold already."""
    ids = np.concatenate(pattern_ids)
    owners = np.repeat(np.arange(len(pattern_ids)), [len(part) for part in pattern_ids])
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    return np.unique(owners[order][repeated]).tolist()


def _check_counts(folder: Place, counts: StoreCounts, checks: Sequence[PartCheck]) -> None:
    """Raise WorkspaceError if the manifest counts other patterns than the parts hold."""
    held = (
        ("patterns", counts.patterns, sum(len(check.pattern_ids) for check in checks)),
        ("validation", counts.validation, sum(check.num_validation for check in checks)),
    )
    for name, counted, number in held:
        if counted != number:
            raise WorkspaceError(
                f"{folder / 'manifest.json'} counts {counted} {name}, and its parts hold {number}: remove it and "
                f"run `raygenesis {made_by(folder)}`"
            )


def show(workspace: Workspace, path: Path, num_classes: int = 12, store: str = "patterns") -> int:
    """Write a contact sheet (PNG) of mid-slices: a row a class, evenly chosen, of the reference and its neighbours.

    Of random crops a row a training scan, in place of a class, of its first crops. Returns the number of rows. A
    pattern that was not cropped leaves its tile black.
    """
    folder = _folder(workspace, store)
    manifest = store_manifest(folder)
    axes = _sheet_axes(manifest.counts)
    rows = np.unique(np.linspace(0, axes.num_rows - 1, num_classes).astype(int)).tolist()
    columns = list(range(min(MOST_COLUMNS, axes.num_columns)))
    where = predicate(TRAINING, scales=axes.scales)
    where &= pc.field(axes.row).isin(pa.array(rows, pa.int32())) & (pc.field(axes.column) < len(columns))
    patterns = read_patterns(folder, (axes.row, axes.column, "extent_mm", "cube"), where).to_pylist()
    step = TILE_PIXELS + 2
    sheet = Image.new("L", (MARGIN_PIXELS + len(columns) * step, CAPTION_PIXELS + len(rows) * step))
    draw = ImageDraw.Draw(sheet)
    for column in columns:
        draw.text((MARGIN_PIXELS + column * step + 2, 1), axes.column_title(column), fill=200)
    for number, row in enumerate(rows):
        draw.text((2, CAPTION_PIXELS + number * step + 2), axes.row_title(row), fill=200)
    for pattern in patterns:
        shown = Image.fromarray(_tile(pattern, manifest.cube_shape, folder))
        left = MARGIN_PIXELS + pattern[axes.column] * step + (TILE_PIXELS - shown.width) // 2
        top = CAPTION_PIXELS + rows.index(pattern[axes.row]) * step + (TILE_PIXELS - shown.height) // 2
        sheet.paste(shown, (left, top))
    write_sheet(sheet, path)
    say("show", f"{len(rows)} of {axes.num_rows} {axes.unit} → {path}")
    return len(rows)


@dataclass(frozen=True)
class SheetAxes:
    """What the rows and columns of a contact sheet are: the store's columns that number them, and their titles."""

    unit: str
    row: str
    num_rows: int
    row_title: Callable[[int], str]
    column: str
    num_columns: int
    column_title: Callable[[int], str]
    scales: Sequence[int] | None = None


def _sheet_axes(counts: StoreCounts) -> SheetAxes:
    if not counts.references:
        return SheetAxes(
            "training scans", "rank", counts.neighbours, lambda rank: f"scan {rank}",
            "coordinate", counts.coordinates, lambda number: f"crop {number}",
        )  # fmt: skip

    def class_title(label: int) -> str:
        reference, coordinate = divmod(label, counts.coordinates)
        return f"class {label}\nreference {reference}\ncoordinate {coordinate}"

    return SheetAxes(
        "classes", "label", counts.references * counts.coordinates, class_title,
        "rank", counts.neighbours, lambda rank: f"neighbour {rank}" if rank else "reference", scales=[0],
    )  # fmt: skip


def _tile(pattern: Mapping[str, Any], shape: Sequence[int], folder: Place) -> NDArray[np.uint8]:
    """The axial mid-slice of a cube (2D: the image), in its true proportions: front up, right on the left."""
    try:
        cube = decode(pattern["cube"], tuple(shape))
    except (ValueError, RuntimeError) as error:
        raise WorkspaceError(f"{folder} is damaged ({error}): {who_checks(folder)} names the part") from None
    image = cube[len(cube) // 2] if cube.ndim == 3 else cube
    return tile(np.rint(image * 255).astype(np.uint8), pattern["extent_mm"][-2:])
