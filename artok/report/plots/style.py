"""The look that all plots of a page share: colours, axes, number formats, and writing as SVG or PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from artok.report.data_uris import Picture, svg

# Okabe and Ito 2008, told apart by colour-blind readers; without black and yellow, which vanish on black or white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#010203"  # stands for the page's own text colour in what matplotlib draws
CSS = "<style>svg{color:#333}@media (prefers-color-scheme:dark){svg{color:#ddd}}</style>"
WIDTH, HEIGHT, ROW = 3.6, 2.5, 0.18  # inches: of a plot, and of a line of its legend
SPAN = 8.0  # from this ratio of the largest to the smallest value on, an axis is logarithmic
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "artok",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
in_style = matplotlib.rc_context(LOOK)  # a decorator of functions that draw


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def new_axes(title: str, xlabel: str, ylabel: str, legend_rows: int) -> tuple[Figure, Axes]:
    """A figure with room for a legend below its axes. Not through pyplot, which keeps figures alive."""
    figure = Figure(figsize=(WIDTH, HEIGHT + ROW * legend_rows), layout="constrained")
    axes = figure.subplots()
    axes.set_title(literal(title), loc="left")
    axes.set_xlabel(literal(xlabel))
    axes.set_ylabel(literal(ylabel))
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    return figure, axes


def legend_entry(label: str, **look: Any) -> Line2D:
    return Line2D([], [], label=literal(label), **look)


def scale_axis(axes: Axes, which: Literal["x", "y"], values: Sequence[float], span: float = SPAN) -> None:
    """Round ticks; a logarithmic scale where positive values span more than the ratio `span`."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if min(values) > 0 and max(values) > span * min(values):
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_major_locator(FixedLocator(round_numbers(min(values), max(values))))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... around a range, at most six of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    inside = [value for value in found if low / 1.5 <= value <= high * 1.5]
    return inside[:: math.ceil(len(inside) / 6)]


def draw(figure: Figure, alt: str) -> Picture:
    """The figure as SVG that follows its reader's light or dark colours. alt: what it shows, in words."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue().replace(INK, "currentColor").replace("<defs>", f"{CSS}<defs>", 1)
    return svg(text, alt, round(figure.get_figwidth() * 96), round(figure.get_figheight() * 96), figure)


@in_style
def write_png(picture: Picture, path: Path, dpi: int = 200) -> Path:
    """A plot as a PNG on white, for READMEs and papers. ValueError: the picture is no plot."""
    if picture.figure is None:
        raise ValueError("only plots can be written as PNG")
    picture.figure.savefig(path, dpi=dpi, facecolor="white")
    return path


def literal(text: str) -> str:
    """A name as it stands: matplotlib would read $ as mathematics, and hide a label that starts with _."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def thousands(value: float) -> str:
    """1500 as 1.5k, millions as M, billions as G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def short(value: float | None) -> str:
    """Three significant digits for alternative texts, whole numbers in full."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"
