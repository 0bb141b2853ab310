"""Kinds of pictures: a slice as PNG with the boxes of patterns on it, and a gallery of slices as one figure."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from PIL import Image

from raygenesis.archive.catalogue import CatalogueRow
from raygenesis.discovery.cubes import crop_cubes, size_mm
from raygenesis.settings import IntensitySettings
from raygenesis.text.charts import DOTS_PER_INCH, STYLE, slug
from raygenesis.workspace.files import Place

SCAN_PIXELS, CUBE_PIXELS = 128, 64
CORONAL = 1
MOST_NUMBERED = 8  # boxes of one picture
LABELS_ACROSS = 16  # so many numbers of boxes are as high as a picture is wide
YELLOW = "#ffd24a"  # of boxes on slices, in the page too
INCHES = 1.05  # of a picture in a file
LETTERS_PER_INCH = 18


@dataclass(frozen=True)
class Box:
    """The outline of a pattern on a picture, in its pixels from its upper left corner; `number` is its coordinate.

    label: the middle of its number, of those that have theirs written.
    """

    x: float
    y: float
    width: float
    height: float
    number: int
    label: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """A PNG with its alternative text and size in pixels; `note` is the caption."""

    content: bytes = field(repr=False)
    alt: str
    width: int
    height: int
    note: str = ""
    boxes: Sequence[Box] = ()

    @property
    def label_size(self) -> float:
        """Height of the numbers of boxes, in pixels."""
        return self.width / LABELS_ACROSS

    @property
    def source(self) -> str:
        """What the page shows it from."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures under the titles of their columns, or each under its own caption; `names` are the rows'.

    note: what must be known of all, such as their plane. legend: names and colours. inches: how wide a picture is in
    the files, which have title, note and legend below, and of volume ids the first half.
    """

    title: str
    rows: Sequence[Sequence[Picture]]
    columns: Sequence[str] = ()
    names: Sequence[str] = ()
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()
    inches: float = INCHES

    @property
    def name(self) -> str:
        """The name of its files, without an ending."""
        return slug(self.title)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Endings and contents: SVG and PNG."""
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": self.title, "font.size": 6.5}):
            figure = self._drawn()
            for ending, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": DOTS_PER_INCH})):
                out = io.BytesIO()
                figure.savefig(out, format=ending, bbox_inches="tight", pad_inches=0.05, **options)
                yield ending, out.getvalue()

    def _drawn(self) -> Figure:
        num_columns = max(map(len, self.rows))
        captions = 0.3 * (not self.columns) / self.inches  # above the pictures of a row
        heights = [max(picture.height / picture.width for picture in row) + captions for row in self.rows]
        figure = Figure((num_columns * self.inches, sum(heights) * self.inches))
        cells = figure.subplots(
            len(self.rows), num_columns, squeeze=False, height_ratios=heights,
            gridspec_kw={"wspace": 0.06, "hspace": 0.06 + captions, "left": 0, "right": 1, "bottom": 0, "top": 1},
        )  # fmt: skip
        for axes in cells.flat:
            axes.set_axis_off()
        for number, row in enumerate(self.rows):
            for column, picture in enumerate(row):
                _draw(cells[number, column], picture)
                if not self.columns:
                    cells[number, column].set_title(_in_lines(picture.note))
                elif number == 0:
                    cells[number, column].set_title(self.columns[column])
        for axes, name in zip(cells[:, 0], self.names, strict=False):
            axes.text(-0.06, 0.5, name, transform=axes.transAxes, ha="right", va="center")
        self._write_below(figure)
        return figure

    def _write_below(self, figure: Figure) -> None:
        """Title and note, and above them the legend."""
        width, height = figure.get_size_inches()
        if self.legend:
            patches = [Patch(color=colour, label=name) for name, colour in self.legend]
            figure.legend(
                handles=patches, loc="upper left", bbox_to_anchor=(0, -0.02 / height), ncols=4, borderaxespad=0,
                handlelength=1, columnspacing=1,
            )  # fmt: skip
        lines = textwrap.wrap(f"{self.title}. {self.note}".rstrip(". "), int(width * LETTERS_PER_INCH))
        top = -0.06 - 0.14 * -(-len(self.legend) // 4)
        figure.text(0, top / height, "\n".join(lines), va="top")


def _draw(axes: Axes, picture: Picture) -> None:
    axes.imshow(np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")))
    for box in picture.boxes:
        axes.add_patch(Rectangle((box.x, box.y), box.width, box.height, fill=False, edgecolor=YELLOW, linewidth=0.8))
        if box.label:
            axes.text(
                *box.label, str(box.number), color=YELLOW, fontsize=8, fontweight="bold", ha="center",
                va="center_baseline",
            )  # fmt: skip


def _in_lines(note: str) -> str:
    """A caption for a file: in short lines, and of volume ids the first eight of sixteen digits."""
    short = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8}\b", r"\1", note)
    return short.replace(": ", ":\n").replace(", ", ",\n")


def numbered(boxes: Sequence[Box], size: float) -> list[Box]:
    """The first eight of several boxes with places for their numbers, of this height, within them.

    Each is where it covers no other number, lies on as few edges of other boxes, and in as few of them, as it can be.
    """
    if len(boxes) < 2:
        return list(boxes)
    placed: list[tuple[float, float]] = []

    def cost(place: tuple[float, float], own: Box) -> int:
        x, y = place
        covered = sum(abs(x - there[0]) < size and abs(y - there[1]) < 1.2 * size for there in placed)
        on_edges = within = 0
        for box in boxes:
            beside, below = (x - box.x, x - box.x - box.width), (y - box.y, y - box.y - box.height)
            across = -0.6 * size < beside[0] and beside[1] < 0.6 * size
            along = -0.6 * size < below[0] and below[1] < 0.6 * size
            near = [across and along and min(map(abs, apart)) < 0.6 * size for apart in (beside, below)]
            on_edges += any(near) and box is not own
            within += across and along
        return 100 * covered + 2 * on_edges + within

    out = []
    for box in boxes:
        if box.number >= MOST_NUMBERED:
            out.append(box)
            continue
        inset = [min(0.8 * size, side / 2) for side in (box.width, box.height)]
        xs, ys = (
            (start + step, start + side - step, start + side / 2)
            for start, side, step in zip((box.x, box.y), (box.width, box.height), inset, strict=True)
        )
        label = min(((x, y) for y in ys for x in xs), key=lambda place: cost(place, box))
        placed.append(label)
        out.append(replace(box, label=label))
    return out


def plane_note(ndim: int, what: str = "Coronal slices") -> str:
    """A sentence on how slices of scans or cubes lie on the page."""
    return f"{what}, head up, the patient's right on the left" if ndim == 3 else "Images as they were taken"


def mid_slice(voxels: NDArray[Any]) -> NDArray[Any]:
    """The coronal mid-slice of [z, y, x] (2D: the image itself): the head or the front up, right on the left."""
    return (voxels[:, voxels.shape[1] // 2] if voxels.ndim == 3 else voxels)[::-1, ::-1]


def picture(
    image: NDArray[Any], alt: str, note: str = "", *, extent: Sequence[float] = (1, 1), pixels: int = CUBE_PIXELS,
    boxes: Sequence[Box] = (),
) -> Picture:  # fmt: skip
    """A grey (values in [0, 1]) or RGB image whose rows and columns span `extent`, `pixels` on its longer side."""
    longest = max(extent)
    height, width = (max(1, round(pixels * side / longest)) for side in extent)
    levels = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    out = io.BytesIO()
    bitmap = Image.fromarray(np.ascontiguousarray(levels))
    bitmap.resize((width, height), Image.Resampling.BILINEAR).save(out, "PNG", optimize=True)
    return Picture(out.getvalue(), alt, width, height, note, boxes)


@dataclass(frozen=True)
class PatternBox:
    """The box of a pattern in its scan: lower corner and extent in mm, z y x (2D: y x), and its coordinate's number."""

    coordinate: int
    origin_mm: Sequence[float]
    extent_mm: Sequence[float]


@dataclass(frozen=True)
class SliceSpec:
    """Which slice of a scan is shown, and how.

    alt: what it shows, in words. note: its caption. plane: the axis across it (3D). at_mm: its place along that axis;
    the middle when None. boxes: of patterns, which are projected on it. pixels: on its longer side.
    """

    alt: str
    note: str
    plane: int = CORONAL
    at_mm: float | None = None
    boxes: Sequence[PatternBox] = ()
    pixels: int = SCAN_PIXELS


def scan_picture(volumes: Place, row: CatalogueRow, intensity: IntensitySettings, spec: SliceSpec) -> Picture:
    """A slice of an archived scan, read from the pyramid level that suffices for its pixels.

    Raises ScanError if the scan is damaged.
    """
    size, plane, pixels = size_mm(row), spec.plane, spec.pixels
    step = size.max() / pixels
    shape, origin, extent = np.maximum(1, np.rint(size / step)).astype(int), np.zeros(len(size)), size.copy()
    down, across = (axis for axis in range(len(size)) if len(size) == 2 or axis != plane)
    if len(size) == 3:
        middle = size[plane] / 2 if spec.at_mm is None else spec.at_mm
        origin[plane], extent[plane], shape[plane] = np.clip(middle - step / 2, 0, size[plane] - step), step, 1
    (cube,) = crop_cubes(volumes, row, [(origin, extent)], shape.tolist(), intensity)
    image = np.take(cube, 0, plane) if len(size) == 3 else cube
    unit = pixels / max(size[down], size[across])

    def outline(box: PatternBox) -> Box:
        ends = [box.origin_mm[axis] + box.extent_mm[axis] for axis in (across, down)]
        left, top = (size[axis] - end for axis, end in zip((across, down), ends, strict=True))
        width, height = (box.extent_mm[axis] for axis in (across, down))
        return Box(left * unit, top * unit, width * unit, height * unit, box.coordinate)

    sides = (size[down], size[across])
    outlines = numbered([outline(box) for box in spec.boxes], size[across] * unit / LABELS_ACROSS)
    return picture(image[::-1, ::-1], spec.alt, spec.note, extent=sides, pixels=pixels, boxes=outlines)
