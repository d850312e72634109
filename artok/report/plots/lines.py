"""Line plots: values with error bars against a setting, a cost or the images seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from artok.report.data_uris import Picture
from artok.report.plots.style import INK, SPAN, colour, draw, in_style, legend_entry, new_axes, scale_axis, short

DEFAULT_STYLES = {"": ("-", "o")}
TOLD = 8  # points of a line that its alternative text tells; of longer lines it tells the ends


@dataclass(frozen=True)
class Line:
    """name: in the legend, where lines of one name share an entry. errors: standard deviations of y, or none.

    colour: a number, the same for one model in all plots. style: one of the plot's styles. marked: index of a point to
    ring.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] = ()
    colour: int = 0
    style: str = ""
    marked: int | None = None


@in_style
def line_plot(
    title: str,
    xlabel: str,
    ylabel: str,
    lines: Sequence[Line],
    floor: float | None = None,
    marked_label: str = "own settings",
    styles: Mapping[str, tuple[str, str]] = DEFAULT_STYLES,
    log: Literal["xy", "y", ""] = "xy",
) -> Picture:
    """Lines, with the spread over seeds as bars.

    floor: what real images have, a dotted line. styles: name to line style and marker; with several, each has an entry
    in the legend. log: axes that become logarithmic where values span much; a linear x axis starts at 0.
    """
    names = {line.name: line.colour for line in lines}
    used = {line.style: styles[line.style] for line in lines}
    handles = [legend_entry(name, color=colour(number)) for name, number in names.items()]
    if len(styles) > 1:
        handles += [legend_entry(name, color=INK, linestyle=dash, marker=mark) for name, (dash, mark) in used.items()]
    ring: dict[str, Any] = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "linestyle": ""}
    if any(line.marked is not None for line in lines):
        handles.append(legend_entry(marked_label, color=INK, **ring))
    if floor is not None:
        handles.append(legend_entry("real images", color=INK, linestyle=":", linewidth=1))
    figure, axes = new_axes(title, xlabel, ylabel, len(handles))
    for line in lines:
        dash, mark = styles[line.style]
        axes.errorbar(
            line.x,
            line.y,
            yerr=line.errors if any(line.errors) else None,
            color=colour(line.colour),
            linestyle=dash,
            marker=mark or ("." if len(line.x) < 3 else ""),
            capsize=2,
        )
        if line.marked is not None:
            axes.plot([line.x[line.marked]], [line.y[line.marked]], color=colour(line.colour), **ring)
    if floor is not None:
        axes.axhline(floor, color=INK, linestyle=":", linewidth=1)
    scale_axis(axes, "x", [x for line in lines for x in line.x], SPAN if "x" in log else math.inf)
    scale_axis(axes, "y", [y for line in lines for y in line.y], SPAN if "y" in log else math.inf)
    if "x" not in log:
        axes.set_xlim(left=0)
    figure.legend(handles=handles, loc="outside lower left")
    return draw(figure, f"{title}: {ylabel} against {xlabel}. {'; '.join(map(_tell, lines))}")


def _tell(line: Line) -> str:
    points = [f"{short(y)} at {short(x)}" for x, y in zip(line.x, line.y, strict=True)]
    told = points if len(points) <= TOLD else [points[0], "...", points[-1]]
    return f"{line.name}{f', {line.style}' if line.style else ''}: {', '.join(told)}"
