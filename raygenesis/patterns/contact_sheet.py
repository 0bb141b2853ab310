"""A contact sheet of a pattern store: what its patterns look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raygenesis.archive.inspection import TILE_PIXELS, tile, write_sheet
from raygenesis.cluster.progress import say
from raygenesis.errors import WorkspaceError
from raygenesis.patterns.cells import decode
from raygenesis.patterns.reader import StoreArtifact, predicate, read_patterns, store_manifest, verify_command
from raygenesis.patterns.schema import TRAINING, PatternRow
from raygenesis.workspace.artifacts import PATTERNS
from raygenesis.workspace.files import Place
from raygenesis.workspace.manifest import StoreCounts
from raygenesis.workspace.workspace import Workspace

MOST_COLUMNS = 10  # of a contact sheet
CAPTION_PIXELS = 14
MARGIN_PIXELS = 96


def show(workspace: Workspace, path: Path, num_classes: int = 12, store: StoreArtifact = PATTERNS) -> int:
    """Write a contact sheet (PNG) of mid-slices: a row a class, evenly chosen, of the reference and its neighbours.

    Of random crops a row a training scan, in place of a class, of its first crops. Returns the number of rows. A
    pattern that was not cropped leaves its tile black.
    """
    folder = workspace.folder(store)
    manifest = store_manifest(folder)
    axes = _sheet_axes(manifest.counts)
    rows = np.unique(np.linspace(0, axes.num_rows - 1, num_classes).astype(int)).tolist()
    columns = list(range(min(MOST_COLUMNS, axes.num_columns)))
    where = predicate(TRAINING, scales=axes.scales)
    where &= pc.field(axes.row).isin(pa.array(rows, pa.int32())) & (pc.field(axes.column) < len(columns))
    table = read_patterns(folder, (axes.row, axes.column, "extent_mm", "cube"), where)
    places = zip(table[axes.row].to_pylist(), table[axes.column].to_pylist(), table.to_pylist(), strict=True)
    step = TILE_PIXELS + 2
    sheet = Image.new("L", (MARGIN_PIXELS + len(columns) * step, CAPTION_PIXELS + len(rows) * step))
    draw = ImageDraw.Draw(sheet)
    for column in columns:
        draw.text((MARGIN_PIXELS + column * step + 2, 1), axes.column_title(column), fill=200)
    for number, row in enumerate(rows):
        draw.text((2, CAPTION_PIXELS + number * step + 2), axes.row_title(row), fill=200)
    for row, column, pattern in places:
        shown = Image.fromarray(_tile(pattern, manifest.cube_shape, folder))
        left = MARGIN_PIXELS + column * step + (TILE_PIXELS - shown.width) // 2
        top = CAPTION_PIXELS + rows.index(row) * step + (TILE_PIXELS - shown.height) // 2
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


def _tile(pattern: PatternRow, shape: Sequence[int], folder: Place) -> NDArray[np.uint8]:
    """The axial mid-slice of a cube (2D: the image), in its true proportions: front up, right on the left."""
    try:
        cube = decode(pattern["cube"], tuple(shape))
    except (ValueError, RuntimeError) as error:
        raise WorkspaceError(f"{folder} is damaged ({error}): {verify_command(folder)} names the part") from None
    image = cube[len(cube) // 2] if cube.ndim == 3 else cube
    return tile(np.rint(image * 255).astype(np.uint8), pattern["extent_mm"][-2:])
