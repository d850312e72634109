"""Plots of a grid of settings: heat maps, and one quality against one cost with its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from artok.metrics.quantity import number
from artok.report.data_uris import Picture
from artok.report.plots.learning_curves import COLOURS, HEIGHT, INK, LOOK, ROW, WIDTH, drawn, literal, new_axes
from artok.studies.pareto import Value

LEVELS = 32  # colours of a heat map: each is a shape in the file
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WIDE = 10.0  # from this ratio of the largest to the smallest value on, scales are logarithmic
SPREAD = 3.5  # the same for axes of costs, which double from setting to setting


@dataclass(frozen=True)
class Ticks:
    """One axis of a grid: its name and the labels of its entries."""

    name: str
    labels: tuple[str, ...]


def heat_map(
    title: str, unit: str, rows: Ticks, columns: Ticks, values: Sequence[Sequence[float | None]], better: str
) -> Picture:
    """A square for each of values[row][column], with its number; None is left empty. The best has a star.

    better: "higher", "lower", or an empty text where neither is; the better, the brighter.
    """
    known = [value for row in values for value in row if value is not None]
    best = {"higher": max, "lower": min}.get(better, lambda _: None)(known) if len(set(known)) > 1 else None
    colours = matplotlib.colormaps["viridis_r" if better == "lower" else "viridis"].resampled(LEVELS)
    low, high = min(known), max(known)
    logarithmic = low > 0 and high > WIDE * low
    scale = LogNorm(low, high) if logarithmic else Normalize(low, high if high > low else low + 1)
    with matplotlib.rc_context({**LOOK, "axes.spines.left": False, "axes.spines.bottom": False}):
        size = (max(WIDTH, 0.62 * len(columns.labels) + 1.5), max(1.6, 0.42 * len(rows.labels) + 1.0))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_title(literal(title), loc="left")
        field = np.array([[math.nan if value is None else value for value in row] for row in values])
        mesh = axes.pcolormesh(np.ma.masked_invalid(field), cmap=colours, norm=scale)
        for row, column in np.ndindex(field.shape):
            value = values[row][column]
            text, ink = ("–", INK) if value is None else (number(_short(value)), _ink(colours(scale(value))))
            star = " ★" if value is not None and value == best else ""
            axes.text(column + 0.5, row + 0.5, text + star, ha="center", va="center", color=ink, fontsize=8.5)
        _label(axes, rows, columns)
        bar = figure.colorbar(mesh, ax=axes, label=literal(unit) if unit else None, fraction=0.08, pad=0.03)
        if bar.solids is not None:
            bar.solids.set_edgecolor("face")  # no gaps between its colours in browsers
        bar.outline.set_visible(False)
        if logarithmic:
            ticks = [low, math.sqrt(low * high), high]
            bar.ax.yaxis.set_minor_locator(NullLocator())
            bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _said(value)))
        cells = "; ".join(
            f"{rows.labels[row]} and {columns.labels[column]}: {_said(values[row][column])}"
            for row, column in np.ndindex(field.shape)
        )
        what = f"{title}{f' ({unit})' if unit else ''} by {rows.name} (rows) and {columns.name} (columns)"
        return drawn(figure, f"Heat map of {what}. {cells}" + (f". Better: {better}" if better else ""))


def _label(axes: Any, rows: Ticks, columns: Ticks) -> None:
    axes.set_xticks([index + 0.5 for index in range(len(columns.labels))], map(literal, columns.labels))
    axes.set_yticks([index + 0.5 for index in range(len(rows.labels))], map(literal, rows.labels))
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_xlabel(literal(columns.name))
    axes.set_ylabel(literal(rows.name))


def _ink(colour: tuple[float, float, float, float]) -> str:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue, _ = colour
    return "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#fff"


def _short(value: float) -> float:
    return float(f"{value:.3g}") if abs(value) < 1000 else value


def _said(value: float | None) -> str:
    return "none" if value is None else number(_short(value))


# ---------------------------------------------------------------------------------------------- scatter


@dataclass(frozen=True)
class Point:
    """A setting. colour, marker: which entry of the two axes it has, by number."""

    name: str
    x: Value
    y: Value
    colour: int
    marker: int


def trade_off(
    title: str,
    across: str,
    up: str,
    points: Sequence[Point],
    front: Sequence[str],
    colours: Ticks,
    markers: Ticks | None = None,
) -> Picture:
    """Quality (`up`, with its unit) against cost (`across`), a mark a setting, the names in `front` joined by a line.

    markers: the second axis of the grid, or None where there is one only.
    """
    with matplotlib.rc_context(LOOK):
        handles = _legend(colours, markers)
        lines = math.ceil(len(handles) / 2)
        figure, axes = new_axes(literal(title), up, 0)
        figure.set_size_inches(WIDTH, HEIGHT + 0.3 + ROW * lines)
        chosen = sorted((point for point in points if point.name in front), key=lambda point: point.x.mean)
        axes.step(
            [point.x.mean for point in chosen],
            [point.y.mean for point in chosen],
            where="post",
            color=INK,
            linestyle=":",
            linewidth=1,
            zorder=1,
        )
        for point in points:
            axes.errorbar(
                point.x.mean,
                point.y.mean,
                xerr=point.x.spread or None,
                yerr=point.y.spread or None,
                color=COLOURS[point.colour % len(COLOURS)],
                marker=MARKERS[point.marker % len(MARKERS)],
                markersize=7 if point.name in front else 5,
                markerfacecolor=None if point.name in front else "none",
                linestyle="none",
            )
        _scale(axes.xaxis, axes.set_xscale, [point.x.mean for point in points], SPREAD)
        _scale(axes.yaxis, axes.set_yscale, [point.y.mean for point in points], WIDE)
        axes.set_xlabel(literal(across))
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
        parts = "; ".join(
            f"{point.name}: {number(point.x.mean)}, {number(_short(point.y.mean))}"
            + (" (on the front)" if point.name in front else "")
            for point in points
        )
        return drawn(figure, f"{title}: {up} against {across}. {parts}")


def _legend(colours: Ticks, markers: Ticks | None) -> list[Line2D]:
    def mark(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="none", markersize=5, label=literal(label), **look)

    handles = [
        mark(f"{colours.name} {label}", color=COLOURS[index % len(COLOURS)], marker="o" if markers is None else "_")
        for index, label in enumerate(colours.labels)
    ]
    if markers is not None:
        for handle in handles:
            handle.set(marker="s", markersize=6)
        handles += [
            mark(f"{markers.name} {label}", color=INK, marker=MARKERS[index % len(MARKERS)], markerfacecolor="none")
            for index, label in enumerate(markers.labels)
        ]
    return [*handles, Line2D([], [], color=INK, linestyle=":", linewidth=1, label="Pareto front (filled marks)")]


def _scale(axis: Any, set_scale: Any, values: Sequence[float], ratio: float) -> None:
    """A logarithmic scale where the values span more than a ratio, with ticks at values where those are few."""
    low, high = min(values), max(values)
    if low <= 0 or high < ratio * low:
        return
    set_scale("log", base=2)
    distinct = sorted(set(values))
    ticks = distinct if len(distinct) <= 4 else [2.0**power for power in range(*_powers(low, high))]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(_short(value))))


def _powers(low: float, high: float) -> tuple[int, int, int]:
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    return first, last + 1, max(1, math.ceil((last - first) / 5))
