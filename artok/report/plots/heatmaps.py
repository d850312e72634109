"""A quantity over a grid of two settings, as a heat map with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from artok.report.data_uris import Picture
from artok.report.plots.style import INK, WIDTH, draw, in_style, literal, short

LEVELS = 32  # colours of a heat map: each is a shape in the file
SPAN = 10.0  # from this ratio of the largest to the smallest value on, colours are logarithmic


@in_style
def heat_map(
    title: str,
    values: Sequence[Sequence[float | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    row_name: str = "",
    column_name: str = "",
    unit: str = "",
    better: str = "",
) -> Picture:
    """A square for each of values[row][column], with its number; None is left empty. The best has a star.

    better: "higher", "lower", or an empty text where neither is; the better, the brighter.
    """
    known = [value for row in values for value in row if value is not None]
    best = {"higher": max, "lower": min}.get(better, lambda _: None)(known) if len(set(known)) > 1 else None
    colours = matplotlib.colormaps["viridis_r" if better == "lower" else "viridis"].resampled(LEVELS)
    low, high = min(known), max(known)
    logarithmic = low > 0 and high > SPAN * low
    scale = LogNorm(low, high) if logarithmic else Normalize(low, high if high > low else low + 1)
    size = (max(WIDTH, 0.62 * len(column_labels) + 1.5), max(1.6, 0.42 * len(row_labels) + 1.0))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(literal(title), loc="left")
    axes.spines[:].set_visible(False)
    field = np.array([[math.nan if value is None else value for value in row] for row in values])
    mesh = axes.pcolormesh(np.ma.masked_invalid(field), cmap=colours, norm=scale)
    for row, column in np.ndindex(field.shape):
        value = values[row][column]
        text, ink = ("–", INK) if value is None else (short(value), _ink(colours(scale(value))))
        star = " ★" if value is not None and value == best else ""
        axes.text(column + 0.5, row + 0.5, text + star, ha="center", va="center", color=ink, fontsize=8.5)
    axes.set_xticks(np.arange(len(column_labels)) + 0.5, map(literal, column_labels))
    axes.set_yticks(np.arange(len(row_labels)) + 0.5, map(literal, row_labels))
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_xlabel(literal(column_name))
    axes.set_ylabel(literal(row_name))
    bar = figure.colorbar(mesh, ax=axes, label=literal(unit) if unit else None, fraction=0.08, pad=0.03)
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # no gaps between its colours in browsers
    bar.outline.set_visible(False)
    if logarithmic:
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_locator(FixedLocator([low, math.sqrt(low * high), high]))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    told = "; ".join(
        f"{row_labels[row]} and {column_labels[column]}: {short(values[row][column])}"
        for row, column in np.ndindex(field.shape)
    )
    what = f"{title}{f' ({unit})' if unit else ''} by {row_name} (rows) and {column_name} (columns)"
    return draw(figure, f"Heat map of {what}. {told}" + (f". Better: {better}" if better else ""))


def _ink(colour: tuple[float, float, float, float]) -> str:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue, _ = colour
    return "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#fff"
