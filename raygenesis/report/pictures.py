"""Slices as PNG, with the boxes of patterns on them, and rows of slices as one figure of a paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from raygenesis.discovery.cubes import crop_cubes, size_mm
from raygenesis.files import Place
from raygenesis.report.charts import DOTS_PER_INCH, STYLE, slug
from raygenesis.settings import IntensitySettings

Row = Mapping[str, Any]

SCAN_PIXELS, CUBE_PIXELS = 128, 64
CORONAL = 1
MOST_NUMBERED = 8  # boxes of one picture
YELLOW = "#ffd24a"  # of boxes on slices, in the page too


@dataclass(frozen=True)
class Box:
    """The outline of a pattern on a picture, in its pixels from its upper left corner; `number` is its coordinate."""

    x: float
    y: float
    width: float
    height: float
    number: int


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
    def source(self) -> str:
        """What the page shows it from."""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures under the titles of their columns, or each under its own caption; `names` are the rows'."""

    title: str
    rows: Sequence[Sequence[Picture]]
    columns: Sequence[str] = ()
    names: Sequence[str] = ()

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
        captions = 0.3 * (not self.columns)  # inches below the pictures of a row
        heights = [max(shown.height / shown.width for shown in row) + captions for row in self.rows]
        figure = Figure((num_columns * 1.05, sum(heights) * 1.05))
        cells = figure.subplots(
            len(self.rows), num_columns, squeeze=False, height_ratios=heights,
            gridspec_kw={"wspace": 0.06, "hspace": 0.06 + captions, "left": 0, "right": 1, "bottom": 0, "top": 1},
        )  # fmt: skip
        for axes in cells.flat:
            axes.set_axis_off()
        for number, row in enumerate(self.rows):
            for column, shown in enumerate(row):
                _draw(cells[number, column], shown)
                if not self.columns:
                    cells[number, column].set_title(shown.note.replace(": ", ":\n").replace(", ", ",\n"))
                elif number == 0:
                    cells[number, column].set_title(self.columns[column])
        for axes, name in zip(cells[:, 0], self.names, strict=False):
            axes.text(-0.06, 0.5, name, transform=axes.transAxes, ha="right", va="center")
        return figure


def _draw(axes: Axes, shown: Picture) -> None:
    axes.imshow(np.asarray(Image.open(io.BytesIO(shown.content)).convert("RGB")))
    for box in shown.boxes:
        axes.add_patch(Rectangle((box.x, box.y), box.width, box.height, fill=False, edgecolor=YELLOW, linewidth=0.8))
        if box.number < MOST_NUMBERED and len(shown.boxes) > 1:
            axes.text(box.x + 2, box.y + 2, str(box.number), color=YELLOW, va="top", fontsize=5)


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
    shown = Image.fromarray(np.ascontiguousarray(levels))
    shown.resize((width, height), Image.Resampling.BILINEAR).save(out, "PNG", optimize=True)
    return Picture(out.getvalue(), alt, width, height, note, boxes)


def scan_picture(
    volumes: Place, row: Row, intensity: IntensitySettings, alt: str, note: str, plane: int = CORONAL,
    boxes: Sequence[Row] = (), at_mm: float | None = None,
) -> Picture:  # fmt: skip
    """A slice of an archived scan, in the middle or at `at_mm`, read from the level that suffices for it.

    boxes: `origin_mm`, `extent_mm` and `coordinate` of patterns, which are projected on it.
    """
    size = size_mm(row)
    step = size.max() / SCAN_PIXELS
    shape, origin, extent = np.maximum(1, np.rint(size / step)).astype(int), np.zeros(len(size)), size.copy()
    down, across = (axis for axis in range(len(size)) if len(size) == 2 or axis != plane)
    if len(size) == 3:
        middle = size[plane] / 2 if at_mm is None else at_mm
        origin[plane], extent[plane], shape[plane] = np.clip(middle - step / 2, 0, size[plane] - step), step, 1
    (cube,) = crop_cubes(volumes, row, [(origin, extent)], shape.tolist(), intensity)
    image = np.take(cube, 0, plane) if len(size) == 3 else cube
    unit = SCAN_PIXELS / max(size[down], size[across])

    def outline(box: Row) -> Box:
        ends = [box["origin_mm"][axis] + box["extent_mm"][axis] for axis in (across, down)]
        left, top = (size[axis] - end for axis, end in zip((across, down), ends, strict=True))
        width, height = (box["extent_mm"][axis] for axis in (across, down))
        return Box(left * unit, top * unit, width * unit, height * unit, box["coordinate"])

    sides = (size[down], size[across])
    return picture(image[::-1, ::-1], alt, note, extent=sides, pixels=SCAN_PIXELS, boxes=[outline(b) for b in boxes])
