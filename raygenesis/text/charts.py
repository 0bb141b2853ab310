"""Curves and other charts: as SVG in the page's own colours, and as SVG and PNG for a paper."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

MOST_POINTS = 300  # of one curve
MOST_MARKERS = 6  # of one line
MOST_LETTERS = 36  # of the names below an axis, side by side
LETTERS_IN_LINE = 12  # of names that do not stand side by side in one line
DOTS_PER_INCH = 300
HEADING_INCHES = 0.3  # above a chart that is a file of its own
SMALL = 8.5  # the least size of text, in points: a chart is shown at 1.1 times its size or more

# The page's colours in light; in the page they become its CSS variables, so that charts follow light and dark.
GROUND, INK, MUTED, SERIES = "#ffffff", "#191e24", "#56616d", ("#1d6cbd", "#bd4f06", "#26784a")
CSS_OF = {GROUND: "var(--ground)", INK: "currentColor", MUTED: "var(--muted)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
# Of lines in one chart: colours alone would not do, for there are few that all readers tell apart on both grounds.
MARKERS, DASHES = ("o", "s", "^", "D", "v"), ((None, None), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
STYLE: dict[Any, Any] = {  # matplotlib's types allow no other keys than its settings' names
    "svg.fonttype": "none", "font.size": 9.5, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": MUTED, "grid.alpha": 0.25, "axes.axisbelow": True, "lines.linewidth": 1.6, "legend.frameon": False,
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A chart with its title and, in `alt`, what it shows in words; `wide` takes the page's width.

    `inline` is an SVG element in the page's colours, `width` its own width in points; `svg` and `png` are the content
    of files, which carry the title.
    """

    title: str
    of: str
    alt: str
    inline: Markup
    svg: str
    png: bytes
    width: float
    wide: bool = False

    @property
    def name(self) -> str:
        """The name of its files, without an ending."""
        return slug(f"{self.of} {self.title}")

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Endings and contents: SVG and PNG."""
        yield "svg", self.svg.encode()
        yield "png", self.png


def slug(text: str) -> str:
    """A name for a file, in ASCII: what is no letter, digit or dot becomes a dash."""
    return re.sub(r"[^\w.]+", "-", text.replace("λ", "lambda-"), flags=re.ASCII).strip("-.").lower()


@dataclass(frozen=True)
class Labels:
    """What is written on a chart: its title, the names of its axes, and `of`, the run or target that it shows."""

    title: str
    x: str = ""
    y: str = ""
    of: str = ""


@dataclass(frozen=True)
class Line:
    """One curve over epochs; None and NaN are gaps."""

    name: str
    y: Sequence[float | None]


def curves(
    labels: Labels, lines: Sequence[Line], *, levels: Mapping[str, float] | None = None, boundary: float | None = None,
    limits: tuple[float | None, float | None] = (None, None), percent: bool = False,
) -> Chart:  # fmt: skip
    """Curves over epochs.

    levels: dashed horizontal lines by their names. boundary: the epoch where the joint phase begins, a dotted line.
    limits: the ends of the vertical axis; those of the curves where None. percent: write its values in percent.
    """

    def draw(axes: Axes) -> None:
        for line, colour in zip(lines, SERIES, strict=False):
            y = np.array([np.nan if value is None else value for value in line.y], float)
            x = np.unique(np.linspace(0, len(y) - 1, MOST_POINTS).astype(int)) if len(y) else np.empty(0, int)
            marker = "." if len(x) <= 20 else None
            axes.plot(x + 1, y[x], color=colour, label=line.name, marker=marker, clip_on=False)
        for (name, level), dashes in zip((levels or {}).items(), ((4, 2), (1, 1.5)), strict=False):
            axes.axhline(level, color=INK, linewidth=1, dashes=dashes, label=name)
        if boundary is not None:
            axes.axvline(boundary, color=MUTED, linewidth=1, linestyle=":")
            axes.text(boundary, 1.0, " joint", transform=axes.get_xaxis_transform(), color=MUTED, va="bottom")
        axes.set_ylim(*limits)
        axes.set_xlabel("epoch")
        axes.set_ylabel(labels.y)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        _legend(axes)

    last = [f"{line.name} ends at {line.y[-1]:.4g}" for line in lines if line.y and line.y[-1] is not None]
    also = [f"{name} is {value:.4g}" for name, value in (levels or {}).items()]
    return _chart(labels, f"{labels.title} of {labels.of} over epochs: {', '.join(last + also)}.", draw)


def scatter(labels: Labels, alt: str, groups: Mapping[str, NDArray[np.float64]]) -> Chart:
    """Points [n, 2] in three named groups, each drawn above those before it; the last are few and stand out."""

    def draw(axes: Axes) -> None:
        styles = ((MUTED, 9, "o", 0.45), (SERIES[0], 20, "o", 0.9), (SERIES[1], 110, "*", 1.0))
        for (name, points), (colour, size, marker, alpha) in zip(groups.items(), styles, strict=True):
            x, y = points.T
            axes.scatter(x, y, s=size, c=colour, marker=marker, alpha=alpha, label=name, linewidths=0)
        axes.set_xlabel(labels.x)
        axes.set_ylabel(labels.y)
        _legend(axes)

    return _chart(labels, alt, draw, (4.2, 3.2))


def strip(
    labels: Labels, values: Mapping[str, Sequence[float]], *, is_joined: bool = False, dot: str = "trial"
) -> Chart:
    """A column of dots for each name (a row, where names are long), and their means.

    is_joined: draw a line through the means. dot: what each dot is.
    """
    is_horizontal = sum(map(len, values)) > MOST_LETTERS

    def draw(axes: Axes) -> None:
        means = [float(np.mean(dots)) for dots in values.values()]
        places = np.repeat(np.arange(len(values)), [len(dots) for dots in values.values()])
        dots = [dot for column in values.values() for dot in column]
        line = "-" if is_joined and not is_horizontal else ""
        along = range(len(values))
        x, y = (dots, places) if is_horizontal else (places, dots)
        axes.scatter(x, y, s=18, c=SERIES[0], alpha=0.55, linewidths=0, label=dot)
        axes.plot(
            *((means, along) if is_horizontal else (along, means)), color=SERIES[1],
            marker="|" if is_horizontal else "_", markersize=16, markeredgewidth=1.6, linestyle=line, label="mean",
        )  # fmt: skip
        (axes.set_yticks if is_horizontal else axes.set_xticks)(along, list(values))
        if is_horizontal:
            axes.set_ylim(len(values) - 0.5, -0.5)
        else:
            axes.set_xlim(-0.5, len(values) - 0.5)
        axes.set_xlabel(labels.y if is_horizontal else labels.x)
        axes.set_ylabel("" if is_horizontal else labels.y)
        axes.grid(is_horizontal, axis="x")
        axes.grid(not is_horizontal, axis="y")
        _legend(axes)

    means = ", ".join(f"{np.mean(dots):.4g} at {name}" for name, dots in values.items())
    size = (4.2, 0.9 + 0.26 * len(values)) if is_horizontal else (4.2, 2.7)
    return _chart(labels, f"{labels.title}. Mean {labels.y}: {means}.", draw, size)


class ChartLine(NamedTuple):
    """Points of a line in the order of x; spread: what is drawn above and below each, such as a standard deviation."""

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float]


def lines(labels: Labels, series: Mapping[str, ChartLine], *, log: bool = False) -> Chart:
    """Named lines, each of its own colour, marker and dashes, with their spread; the highest end is named first.

    log: x is on a logarithmic scale, with a tick at each value that there is, and spread is bars instead of a band.
    """
    names = sorted(series, key=lambda name: -series[name].y[-1])
    ticks = sorted({x for line in series.values() for x in line.x})

    def draw(axes: Axes) -> None:
        if log:
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        for number, (name, line) in enumerate(series.items()):
            colour, every = SERIES[number % len(SERIES)], 1 + len(line.x) // MOST_MARKERS
            # Bars of lines that share their places stand side by side.
            shift = (number - (len(series) - 1) / 2) * 0.12 / len(series)
            x = np.asarray(line.x) * np.exp(shift) if log else np.asarray(line.x)
            axes.errorbar(
                x, line.y, line.spread if log else None, color=colour, marker=MARKERS[number % len(MARKERS)],
                dashes=DASHES[number // len(SERIES) % len(DASHES)], markersize=4.5, linewidth=1.4, elinewidth=0.8,
                markevery=(number % every, every), label=name,
            )  # fmt: skip
            if not log:
                y, spread = np.asarray(line.y), np.asarray(line.spread)
                axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.07, linewidth=0)
        axes.set_xlabel(labels.x)
        axes.set_ylabel(labels.y)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(
            [handles[name] for name in names], names, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0,
            handlelength=3.2, fontsize=SMALL,
        )  # fmt: skip

    ends = ", ".join(f"{name} {series[name].y[-1]:.4g}" for name in names)
    alt = f"{labels.title} of {labels.of}: {labels.y}. At the right end: {ends}."
    return _chart(labels, alt, draw, (6.6, max(2.9, 0.9 + 0.22 * len(series))), wide=True)


class Pair(NamedTuple):
    """Figures of trials without and with semantics, and what is written above them."""

    without: Sequence[float]
    with_semantics: Sequence[float]
    note: str


def pairs(labels: Labels, values: Mapping[str, Pair]) -> Chart:
    """For each name, trials without and with semantics side by side, their means joined, and a note above them."""

    def draw(axes: Axes) -> None:
        for side, (name, colour) in enumerate((("without semantics", SERIES[0]), ("with", SERIES[1]))):
            columns = [pair[:2][side] for pair in values.values()]
            places = np.arange(len(values)) + (side - 0.5) * 0.36
            spread = np.repeat(places, [len(dots) for dots in columns])
            axes.scatter(spread, np.concatenate(columns), s=18, c=colour, alpha=0.55, linewidths=0, label=name)
            axes.scatter(places, [np.mean(dots) for dots in columns], s=260, c=colour, marker="_", linewidths=2)
        for place, (without, with_it, note) in enumerate(values.values()):
            ends = [float(np.mean(without)), float(np.mean(with_it))]
            axes.plot([place - 0.18, place + 0.18], ends, color=MUTED, linewidth=1, zorder=1)
            axes.text(place, 1.0, note, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=SMALL)
        width = MOST_LETTERS if sum(map(len, values)) <= MOST_LETTERS else LETTERS_IN_LINE
        axes.set_xticks(range(len(values)), [textwrap.fill(name, width) for name in values])
        axes.set_xlim(-0.6, len(values) - 0.4)
        axes.set_ylabel(labels.y)
        _legend(axes)

    means = ", ".join(
        f"{name} {np.mean(without):.4g} without and {np.mean(with_it):.4g} with, {note}"
        for name, (without, with_it, note) in values.items()
    )
    return _chart(labels, f"{labels.title}. Mean {labels.y}: {means}.", draw)


def marginal(labels: Labels, points: Sequence[tuple[float, float]], *, log: bool = False) -> Chart:
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
        axes.set_xlabel(labels.x)
        axes.set_ylabel(labels.y)
        _legend(axes)

    ends = f"The lowest value of {labels.x} has {y[0]:.4g}, the highest {y[-1]:.4g}"
    return _chart(labels, f"{labels.title}: {labels.y} of {len(x)} points. {ends}.", draw)


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
            style: dict[str, Any] = {"color": SERIES[1], "linewidth": 2.4, "zorder": 3} if number == best else {
                "color": SERIES[0], "alpha": 0.15 + 0.55 * row[-1],
            }  # fmt: skip
            axes.plot(row, label="best point" if number == best else None, **style)
        for place, name in enumerate(names):
            axes.axvline(place, color=MUTED, linewidth=0.8)
            for height, label in axes_of[name]:
                axes.text(
                    place + 0.03, height + 0.02, label, va="bottom", fontsize=SMALL, color=INK, zorder=4,
                    bbox={"facecolor": GROUND, "edgecolor": "none", "alpha": 0.85, "pad": 1},
                )  # fmt: skip
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(-0.1, len(names) - 0.6)
        axes.set_ylim(-0.06, 1.12)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.02), borderaxespad=0)

    alt = f"{title}: {len(rows)} points as lines over {', '.join(names)}."
    return _chart(Labels(title), alt, draw, (max(4.2, 1.6 * len(names)), 3.0), wide=len(names) > 3)


def _legend(axes: Axes) -> None:
    """Names of what is drawn, above it, where there is more than one thing."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.05, 1.07), ncols=4, borderaxespad=0, columnspacing=0.9,
            handlelength=1.2, handletextpad=0.4, fontsize=SMALL,
        )  # fmt: skip


def _chart(
    labels: Labels, alt: str, draw: Callable[[Axes], None], size: tuple[float, float] = (4.2, 2.7), wide: bool = False
) -> Chart:
    inline, text, picture = io.StringIO(), io.StringIO(), io.BytesIO()
    width, height = size
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": alt}):
        engine = ConstrainedLayoutEngine(rect=(0, 0, 1, height / (height + HEADING_INCHES)))
        figure = Figure(figsize=(width, height + HEADING_INCHES), layout=engine)
        draw(figure.add_subplot())
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once for all
        below = Bbox.from_extents(0, 0, width, height)
        figure.savefig(inline, format="svg", transparent=True, metadata=nothing, bbox_inches=below)
        heading = f"{labels.of}: {labels.title}" if labels.of else labels.title
        figure.text(
            0.02, 1 - 0.3 * HEADING_INCHES / (height + HEADING_INCHES), heading[:1].upper() + heading[1:],
            va="top", fontweight="bold",
        )  # fmt: skip
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
        figure.savefig(picture, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return Chart(
        labels.title, labels.of, alt, _inline(inline.getvalue()), text.getvalue(), picture.getvalue(), 72 * width, wide
    )


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
