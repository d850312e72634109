"""One quality against one cost: a mark per setting or model, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from artok.report.data_uris import Picture
from artok.report.plots.style import (
    INK,
    MARKERS,
    ROW,
    colour,
    draw,
    in_style,
    legend_entry,
    new_axes,
    scale_axis,
    short,
)


@dataclass(frozen=True)
class Point:
    """A setting or model. Errors are standard deviations over seeds. colour, marker: entries of the plot's legend."""

    name: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0
    colour: str = ""
    marker: str = ""


@in_style
def trade_off(
    title: str,
    xlabel: str,
    ylabel: str,
    points: Sequence[Point],
    front: Collection[str],
    colours: Sequence[str],
    markers: Sequence[str] = ("",),
) -> Picture:
    """A mark per point; the names in `front` are filled and joined by steps.

    colours, markers: all that points have, in the order of the legend.
    """
    names = list(colours), list(markers)
    several = len(markers) > 1
    look: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    handles = [
        legend_entry(name, color=colour(index), marker="s" if several else "o", **look)
        for index, name in enumerate(colours)
    ]
    if several:
        handles += [
            legend_entry(name, color=INK, marker=MARKERS[index % len(MARKERS)], markerfacecolor="none", **look)
            for index, name in enumerate(markers)
        ]
    handles.append(legend_entry("Pareto front (filled)", color=INK, linestyle=":", linewidth=1))
    figure, axes = new_axes(title, xlabel, ylabel, math.ceil(len(handles) / 2))
    figure.set_figheight(figure.get_figheight() + 2 * ROW)
    chosen = sorted((point for point in points if point.name in front), key=lambda point: point.x)
    x, y = [point.x for point in chosen], [point.y for point in chosen]
    axes.step(x, y, where="post", color=INK, linestyle=":", linewidth=1, zorder=1)
    for point in points:
        axes.errorbar(
            point.x,
            point.y,
            xerr=point.x_error or None,
            yerr=point.y_error or None,
            color=colour(names[0].index(point.colour)),
            marker=MARKERS[names[1].index(point.marker) % len(MARKERS)],
            markersize=7 if point.name in front else 5,
            markerfacecolor=None if point.name in front else "none",
            linestyle="none",
        )
    scale_axis(axes, "x", [point.x for point in points], span=3.5)
    scale_axis(axes, "y", [point.y for point in points])
    figure.legend(handles=handles, loc="outside lower left", ncols=2)
    told = "; ".join(
        f"{point.name}: {short(point.x)}, {short(point.y)}{' (on the front)' if point.name in front else ''}"
        for point in points
    )
    return draw(figure, f"{title}: {ylabel} against {xlabel}. {told}")
