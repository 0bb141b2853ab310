"""Curves as SVG in the page's own colours, slices of scans and patterns as PNG, and the pictures made of them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import matplotlib
import numpy as np
import pyarrow.compute as pc
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from raygenesis.archive.catalogue import read_catalogue
from raygenesis.archive.cells import decode
from raygenesis.archive.source import read_coarse
from raygenesis.config import IntensitySettings, Settings
from raygenesis.discovery.cubes import crop_cubes, size_mm
from raygenesis.discovery.embed import WEIGHTS
from raygenesis.discovery.encoders import load_scan_encoder, restore
from raygenesis.errors import ScanError
from raygenesis.patterns.reader import TRAINING_COLUMNS, predicate, read_patterns
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.pretraining.task import VALIDATION_EPOCH, PretextTask
from raygenesis.pretraining.weights import load_network
from raygenesis.training.feeding import Samples
from raygenesis.workspace import Place, Workspace, on_disk

Row = Mapping[str, Any]

SCAN_PIXELS, CUBE_PIXELS = 128, 64
MOST_CLASSES = MOST_COLUMNS = 8
MOST_POINTS = 300  # of one curve
MOST_BOXES = 44
MOST_LETTERS = 60  # of the names below an axis, side by side
NUM_CORRUPTED = 6
AXIAL, CORONAL, SAGITTAL = 0, 1, 2
PLANES = {AXIAL: "axial", CORONAL: "coronal", SAGITTAL: "sagittal"}

# matplotlib draws with these colours; in the page they become CSS, so that curves follow light and dark.
INK, MUTED, SERIES = "#010101", "#020202", ("#030303", "#040404", "#050505")
CSS_OF = {INK: "currentColor", MUTED: "var(--muted)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
STYLE = {
    "svg.fonttype": "none", "font.size": 8.5, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": MUTED, "grid.alpha": 0.25, "axes.axisbelow": True, "lines.linewidth": 1.6, "legend.frameon": False,
}  # fmt: skip
OVERLAY = np.array([[0.95, 0.45, 0.1], [0.2, 0.65, 1.0], [0.25, 0.8, 0.4], [0.85, 0.4, 0.85], [0.95, 0.85, 0.2]])


@dataclass(frozen=True)
class Chart:
    """An inline SVG with its title and, in `alt`, what it shows in words; `wide` takes the page's width."""

    title: str
    alt: str
    svg: Markup
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG with its alternative text and size in pixels; `note` is the caption."""

    source: str
    alt: str
    width: int
    height: int
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One curve over epochs; None and NaN are gaps."""

    name: str
    y: Sequence[float | None]


# Curves


def curves(
    title: str, of: str, lines: Sequence[Line], *, levels: Mapping[str, float] | None = None,
    boundary: float | None = None, least: float | None = None, most: float | None = None, percent: bool = False,
) -> Chart:  # fmt: skip
    """Curves over epochs, dashed horizontal `levels`, and a dotted line where the joint phase begins."""

    def draw(axes: Axes) -> None:
        for line, colour in zip(lines, SERIES, strict=False):
            y = np.array([np.nan if value is None else value for value in line.y], float)
            x = np.unique(np.linspace(0, len(y) - 1, MOST_POINTS).astype(int)) if len(y) else np.empty(0, int)
            axes.plot(x + 1, y[x], color=colour, label=line.name, marker="." if len(x) <= 20 else None)
        for (name, level), dashes in zip((levels or {}).items(), ((4, 2), (1, 1.5)), strict=False):
            axes.axhline(level, color=INK, linewidth=1, dashes=dashes, label=name)
        if boundary is not None:
            axes.axvline(boundary, color=MUTED, linewidth=1, linestyle=":")
            axes.text(boundary, 1.0, " joint", transform=axes.get_xaxis_transform(), color=MUTED, va="bottom")
        axes.set_ylim(least, most)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        _legend(axes)

    last = [f"{line.name} ends at {line.y[-1]:.4g}" for line in lines if line.y and line.y[-1] is not None]
    also = [f"{name} is {value:.4g}" for name, value in (levels or {}).items()]
    return _chart(title, f"{title} of {of} over epochs: {', '.join(last + also)}.", draw)


def scatter(title: str, alt: str, groups: Mapping[str, NDArray[np.float64]], labels: Sequence[str]) -> Chart:
    """Points [n, 2] in named groups; the last is one point and stands out."""

    def draw(axes: Axes) -> None:
        styles = ((MUTED, 9, "o", 0.45), (SERIES[0], 20, "o", 0.9), (SERIES[1], 110, "*", 1.0))
        for (name, points), (colour, size, marker, alpha) in zip(groups.items(), styles, strict=True):
            axes.scatter(*points.T, s=size, c=colour, marker=marker, alpha=alpha, label=name, linewidths=0)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        _legend(axes)

    return _chart(title, alt, draw)


def strip(
    title: str, xlabel: str, ylabel: str, values: Mapping[str, Sequence[float]], *, joined: bool = False,
    dot: str = "trial",
) -> Chart:  # fmt: skip
    """A column of dots for each name, and their means; `dot` is what each of them is."""

    def draw(axes: Axes) -> None:
        means = [float(np.mean(dots)) for dots in values.values()]
        places = np.repeat(np.arange(len(values)), [len(dots) for dots in values.values()])
        dots = [dot for column in values.values() for dot in column]
        axes.scatter(places, dots, s=18, c=SERIES[0], alpha=0.55, linewidths=0, label=dot)
        axes.plot(means, color=SERIES[1], marker="_", markersize=16, linestyle="-" if joined else "", label="mean")
        crowded = sum(map(len, values)) > MOST_LETTERS
        axes.set_xticks(range(len(values)), list(values), **({"rotation": 30, "ha": "right"} if crowded else {}))
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _legend(axes)

    means = ", ".join(f"{np.mean(dots):.4g} at {name}" for name, dots in values.items())
    return _chart(title, f"{title}. Mean {ylabel}: {means}.", draw)


def marginal(
    title: str, key: str, objective: str, points: Sequence[tuple[float, float]], *, log: bool = False
) -> Chart:
    """Points (value, objective) of a setting with many values, and their means in up to five groups of like values."""
    x, y = np.array(sorted(points), float).T
    groups = np.array_split(np.arange(len(x)), min(5, max(1, len(x) // 2)))
    middle = (lambda values: np.exp(np.log(values).mean())) if log else np.mean

    def draw(axes: Axes) -> None:
        axes.scatter(x, y, s=18, c=SERIES[0], alpha=0.55, linewidths=0, label="point")
        means = [[middle(x[group]), y[group].mean()] for group in groups]
        axes.plot(*np.transpose(means), color=SERIES[1], marker="_", markersize=16, label="mean of like values")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(key)
        axes.set_ylabel(objective)
        _legend(axes)

    ends = f"The lowest value of {key} has {y[0]:.4g}, the highest {y[-1]:.4g}"
    return _chart(title, f"{title}: {objective} of {len(x)} points. {ends}.", draw)


def parallel(
    title: str, axes_of: Mapping[str, Sequence[tuple[float, str]]], rows: Sequence[Sequence[float]], best: int
) -> Chart:
    """Parallel coordinates: an upright axis a name with ticks (place in [0, 1], label), and a line a row of places.

    The last axis is the objective, upwards better: the higher a line ends there, the stronger it is drawn. `best` is
    the number of the row that stands out.
    """
    names = list(axes_of)

    def draw(axes: Axes) -> None:
        axes.grid(False)
        for number, row in enumerate(rows):
            style = {"color": SERIES[1], "linewidth": 2.4, "zorder": 3} if number == best else {
                "color": SERIES[0], "alpha": 0.15 + 0.55 * row[-1],
            }  # fmt: skip
            axes.plot(row, label="best point" if number == best else None, **style)
        for place, name in enumerate(names):
            axes.axvline(place, color=MUTED, linewidth=0.8)
            for height, label in axes_of[name]:
                axes.text(place + 0.02, height + 0.015, label, va="bottom", fontsize=7.5, color=INK)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(-0.1, len(names) - 0.6)
        axes.set_ylim(-0.06, 1.1)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.02), borderaxespad=0)

    alt = f"{title}: {len(rows)} points as lines over {', '.join(names)}."
    return _chart(title, alt, draw, (max(4.2, 1.6 * len(names)), 3.0), wide=len(names) > 3)


def _legend(axes: Axes) -> None:
    """Names of what is drawn, above it, where there is more than one thing."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.03, 1.07), ncols=4, borderaxespad=0, columnspacing=1.1,
            handlelength=1.3, handletextpad=0.5,
        )  # fmt: skip


def _chart(
    title: str, alt: str, draw: Callable[[Axes], None], size: tuple[float, float] = (4.2, 2.7), wide: bool = False
) -> Chart:
    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": alt}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return Chart(title, alt, _inline(text.getvalue()), wide)


def _inline(svg: str) -> Markup:
    """The SVG element alone, with the page's font and colours and only the ids that it refers to itself."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", svg.partition(">")[0]) + svg[svg.index(">") :]
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 inherit-family", svg).replace("inherit-family", "sans-serif")
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found.group(0) if found.group(1) in used else "", svg)
    for colour, css in CSS_OF.items():
        svg = svg.replace(colour, css)
    return Markup(svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))


# Slices


def mid_slice(voxels: NDArray[Any]) -> NDArray[Any]:
    """The coronal mid-slice of [z, y, x] (2D: the image itself) with the head, or the front, up."""
    return (voxels[:, voxels.shape[1] // 2] if voxels.ndim == 3 else voxels)[::-1]


def picture(
    image: NDArray[Any], alt: str, note: str = "", *, extent: Sequence[float] = (1, 1), pixels: int = CUBE_PIXELS
) -> Picture:
    """A grey (values in [0, 1]) or RGB image whose rows and columns span `extent`, `pixels` on its longer side."""
    longest = max(extent)
    height, width = (max(1, round(pixels * side / longest)) for side in extent)
    levels = np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR).save(out, "PNG", optimize=True)
    return Picture(f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}", alt, width, height, note)


def scan_picture(
    volumes: Place, row: Row, intensity: IntensitySettings, alt: str, note: str, plane: int = CORONAL
) -> Picture:
    """The mid-slice of an archived scan, read from the level that suffices for it."""
    size = size_mm(row)
    step = size.max() / SCAN_PIXELS
    shape, origin, extent = np.maximum(1, np.rint(size / step)).astype(int), np.zeros(len(size)), size.copy()
    if len(size) == 3:
        origin[plane], extent[plane], shape[plane] = (size[plane] - step) / 2, step, 1
    (cube,) = crop_cubes(volumes, row, [(origin, extent)], shape.tolist(), intensity)
    if len(size) == 3:
        cube, size = cube.take(0, plane), np.delete(size, plane)
    return picture(cube[::-1], alt, note, extent=size, pixels=SCAN_PIXELS)


def contact_sheet(volumes: Place, rows: Sequence[Row], intensity: IntensitySettings) -> list[Picture]:
    """The mid-slices of some scans under their file names; damaged scans are left out."""
    out = []
    for row in rows:
        name = PurePath(row["source"]).name
        with suppress(ScanError):
            out.append(scan_picture(volumes, row, intensity, f"Mid-slice of {name}", name))
    return out


def reconstructions(folder: Place, volumes: Place, rows: Sequence[Row], manifest: Row) -> list[dict[str, Any]]:
    """Held-out scans as the auto-encoder sees them, and as it restores them from their embeddings."""
    intensity = IntensitySettings.model_validate(manifest["settings"]["intensity"])
    model = load_scan_encoder(folder / WEIGHTS)
    out = []
    for row in rows:
        scan = read_coarse(volumes, row, model.input_shape, intensity)
        restored = restore(model, scan)
        size, name = size_mm(row)[[0, -1]], PurePath(row["source"]).name
        shown = [
            picture(mid_slice(voxels), f"{what} of {name}", extent=size, pixels=SCAN_PIXELS)
            for what, voxels in (("Input", scan), ("Reconstruction", restored))
        ]
        out.append({"name": name, "mse": float(np.square(restored - scan).mean()), "pictures": shown})
    return out


# Patterns


def coordinate_boxes(workspace: Workspace, manifest: Row) -> list[dict[str, Any]]:
    """The mid-planes of reference 0 and, in picture pixels, the boxes of its coordinates projected on them."""
    where = (pc.field("reference") == 0) & (pc.field("rank") == 0) & (pc.field("scale") == 0)
    columns = ("coordinate", "origin_mm", "extent_mm")
    boxes = read_patterns(workspace.patterns, columns, predicate(TRAINING) & where).sort_by("coordinate").to_pylist()
    (row,) = read_catalogue(workspace.catalog, [manifest["references"][0]["volume_id"]])
    intensity = IntensitySettings.model_validate(manifest["settings"]["intensity"])
    size, out = size_mm(row), []
    for plane, name in PLANES.items() if len(size) == 3 else ((None, "image"),):
        down, across = (axis for axis in range(len(size)) if axis != plane)
        alt = f"{name} mid-plane of the reference with the boxes of {len(boxes)} coordinates".capitalize()
        shown = scan_picture(workspace.volumes, row, intensity, alt, name.capitalize(), plane)
        unit = shown.width / size[across]
        drawn = [
            {
                "x": box["origin_mm"][across] * unit,
                "y": (size[down] - box["origin_mm"][down] - box["extent_mm"][down]) * unit,
                "width": box["extent_mm"][across] * unit, "height": box["extent_mm"][down] * unit,
                "number": box["coordinate"],
            }
            for box in boxes[:MOST_BOXES]
        ]  # fmt: skip
        out.append({"picture": shown, "boxes": drawn, "text": shown.width / 15})
    return out


def classes(folder: Place, manifest: Row) -> list[dict[str, Any]]:
    """One row per class (up to 8): the mid-slices of the reference's cube and of its nearest neighbours'."""
    where = (pc.field("label") < MOST_CLASSES) & (pc.field("scale") == 0)
    columns = ("label", "rank", "extent_mm", "cube")
    table = read_patterns(folder, columns, predicate(TRAINING, MOST_COLUMNS) & where)
    rows: dict[int, list[Picture]] = {}
    for pattern in table.sort_by([("label", "ascending"), ("rank", "ascending")]).to_pylist():
        cube = decode(pattern["cube"], tuple(manifest["cube_shape"]))
        whose = f"neighbour {pattern['rank']}" if pattern["rank"] else "the reference"
        extent = (pattern["extent_mm"][0], pattern["extent_mm"][-1])
        shown = picture(mid_slice(cube), f"Class {pattern['label']}, {whose}", extent=extent)
        rows.setdefault(pattern["label"], []).append(shown)
    return [{"label": label, "pictures": pictures} for label, pictures in rows.items()]


@torch.inference_mode()
def restorations(run: Place, store: Place, task: PretextTask, settings: Settings) -> list[dict[str, Any]]:
    """Held-out cubes: original, as the run corrupts them in validation, and as its network restores them."""
    where = predicate(VALIDATION, None, settings.pretraining.num_coordinates)
    ids = np.sort(read_patterns(store, ("pattern_id",), where)["pattern_id"].to_numpy())
    chosen = ids[np.unique(np.linspace(0, len(ids) - 1, NUM_CORRUPTED).astype(int))] if len(ids) else ids
    table = read_patterns(store, TRAINING_COLUMNS, pc.field("pattern_id").isin(chosen.tolist()))
    samples = Samples([table], task.sample_key, task.sample_shape)
    if not len(samples):
        return []
    posed = task.pose(samples.batch(np.arange(len(samples))), VALIDATION_EPOCH)
    prediction = load_network(run).eval()(posed.shown)
    extent = [settings.discovery.scales[0].extent_mm[axis] for axis in (0, -1)]
    out = []
    for number in range(len(samples)):
        row, of = {"label": None, "guess": None}, "a random crop"
        if task.puzzle is not None:
            row = {"label": int(posed.answers[number]), "guess": int(prediction.logits[number].argmax())}
            of = f"a pattern of class {row['label']}"
        shown = [
            picture(mid_slice(cubes[number, 0].numpy()), f"{what}, {of}", extent=extent)
            for what, cubes in (
                ("Original", posed.original), ("Corrupted", posed.shown), ("Restored", prediction.restored),
            )
        ]  # fmt: skip
        mse = float((prediction.restored[number] - posed.original[number]).square().mean())
        out.append({**row, "mse": mse, "pictures": shown})
    return out


# Embeddings and targets


def embedding_map(
    vectors: Mapping[str, NDArray[np.float32]], reference: str, neighbours: Sequence[str]
) -> tuple[Chart, float]:
    """Embeddings along their two principal axes, and the first one's share of the variance."""
    ids = list(vectors)
    centred = np.stack([vectors[volume_id] for volume_id in ids]).astype(np.float64)
    centred -= centred.mean(0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    places = np.pad(centred @ axes[:2].T, ((0, 0), (0, max(0, 2 - len(axes)))))
    share = np.pad(np.square(spread) / max(np.square(spread).sum(), 1e-30), (0, 2))
    near = set(neighbours)
    kind = np.array([2 if name == reference else int(name in near) for name in ids])
    names = (f"others ({(kind == 0).sum()})", f"neighbours ({(kind == 1).sum()})", "reference")
    alt = f"Map of {len(ids)} embeddings in two dimensions: the reference, {(kind == 1).sum()} neighbours, the others."
    labels = [f"principal axis {axis + 1} ({share[axis]:.0%} of the variance)" for axis in (0, 1)]
    groups = {name: places[kind == n] for n, name in enumerate(names)}
    return scatter("Embedding map", alt, groups, labels), float(share[0])


def example(path: Place, spacing_mm: Sequence[float]) -> list[Picture]:
    """A test scan's slice of a target task, with its label and each initialisation's prediction over it."""
    with on_disk(path) as local, np.load(local) as arrays:
        held = {name: array if array.ndim == 2 else array[len(array) // 2] for name, array in arrays.items()}
    image = np.clip(held.pop("image").astype(np.float32), 0, 1)
    extent = [side * step for side, step in zip(image.shape, spacing_mm[-2:], strict=True)]
    shown = [picture(image[::-1], "Test image", "Image", extent=extent, pixels=SCAN_PIXELS)]
    for name, classes_there in held.items():
        colours = OVERLAY[(classes_there.astype(int) - 1) % len(OVERLAY)]
        painted = np.where((classes_there > 0)[..., None], 0.45 * image[..., None] + 0.55 * colours, image[..., None])
        name = name.removeprefix("prediction_")
        note = "Label" if name == "label" else f"Predicted, {name}"
        shown.append(picture(painted[::-1], f"{note} over the test image", note, extent=extent, pixels=SCAN_PIXELS))
    return shown
