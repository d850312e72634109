"""Plots of a study: quality against what it costs, a line a contestant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from artok.evaluation.statistics import format_mean
from artok.metrics.catalogue import describe
from artok.metrics.quantity import number
from artok.metrics.results import Results
from artok.report.data_uris import Picture
from artok.report.plots.learning_curves import COLOURS, LOOK, drawn, literal, new_axes, thousands
from artok.studies.pareto import Value
from artok.studies.results import Contestant, Measured

WIDE = 8.0  # from this ratio of the largest to the smallest value on, an axis is logarithmic


@dataclass(frozen=True)
class Trace:
    """A contestant's points (x, y), in the order of the line.

    marked: the one at its own settings. metric: identifier of y.
    """

    name: str
    number: int
    points: Sequence[tuple[float, Value]]
    marked: tuple[float, Value] | None = None
    metric: str = "fd"


def plot(title: str, across: str, up: str, traces: Sequence[Trace], floor: float | None = None) -> Picture:
    """Lines with the spread over the seeds as bars. floor: what real images have, a dotted line."""
    with matplotlib.rc_context(LOOK):
        figure, axes = new_axes(title, up, len(traces) + (floor is not None) + any(t.marked for t in traces))
        for trace in traces:
            colour = COLOURS[trace.number % len(COLOURS)]
            xs = [x for x, _ in trace.points]
            ys = [y.mean for _, y in trace.points]
            bars = [y.spread for _, y in trace.points]
            axes.errorbar(xs, ys, yerr=bars if any(bars) else None, color=colour, marker="o", capsize=2)
            if trace.marked is not None:
                x, y = trace.marked
                axes.errorbar([x], [y.mean], yerr=[y.spread] if y.spread else None, color=colour, capsize=2)
                axes.plot([x], [y.mean], marker="o", markersize=9, color=colour, markerfacecolor="none", linestyle="")
        if floor is not None:
            axes.axhline(floor, color="#010203", linestyle=":", linewidth=1)
        every = [(x, y.mean) for trace in traces for x, y in [*trace.points, *([trace.marked] if trace.marked else [])]]
        _scale(axes.xaxis, axes.set_xscale, [x for x, _ in every])
        _scale(axes.yaxis, axes.set_yscale, [y for _, y in every])
        axes.set_xlabel(across)
        figure.legend(handles=_legend(traces, floor), loc="outside lower left")
        return drawn(figure, f"{title}: {up} against {across}. {'; '.join(_said(trace) for trace in traces)}")


def _scale(axis: object, set_scale: Callable[[str], None], values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) > WIDE * min(values):
        set_scale("log")
        axis.set_major_locator(FixedLocator(round_numbers(min(values), max(values))))  # type: ignore[attr-defined]
        axis.set_minor_locator(NullLocator())  # type: ignore[attr-defined]
    else:
        axis.set_major_locator(MaxNLocator(5))  # type: ignore[attr-defined]
    axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))  # type: ignore[attr-defined]


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... around a range, at most six of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    inside = [value for value in found if low / 1.5 <= value <= high * 1.5]
    return inside[:: math.ceil(len(inside) / 6)]


def _legend(traces: Sequence[Trace], floor: float | None) -> list[Line2D]:
    handles = [
        Line2D([], [], color=COLOURS[trace.number % len(COLOURS)], marker="o", label=literal(trace.name))
        for trace in traces
    ]
    if any(trace.marked for trace in traces):
        look = {"color": "#010203", "marker": "o", "markerfacecolor": "none", "markersize": 8, "linestyle": ""}
        handles.append(Line2D([], [], label="its own settings", **look))  # type: ignore[arg-type]
    if floor is not None:
        handles.append(Line2D([], [], color="#010203", linestyle=":", linewidth=1, label="real images"))
    return handles


def _said(trace: Trace) -> str:
    quantity = describe(trace.metric)
    points = [f"{format_mean(y, quantity)} at {number(float(f'{x:.3g}'))}" for x, y in trace.points]
    own = f", its own settings {format_mean(trace.marked[1], quantity)}" if trace.marked else ""
    return f"{trace.name}: {', '.join(points)}{own}"


# ---------------------------------------------------------------------------------------------- which


def plots(contestants: Sequence[Contestant]) -> list[Picture]:
    """Quality against latency, passes, guidance and images seen, and diversity against guidance; what there is."""
    distance = contestants[0].distance
    found: list[Picture | None] = [
        _latency(contestants, distance),
        _settings(contestants, "steps", "network passes", f"{distance}, lower is better", "fd", passes=True),
        _settings(contestants, "guidance", "guidance scale", f"{distance}, lower is better", "fd"),
        _settings(contestants, "guidance", "guidance scale", "recall, higher is better", "recall"),
        _settings(contestants, "guidance", "guidance scale", "precision, higher is better", "precision"),
        _course(contestants, distance),
    ]
    return [picture for picture in found if picture is not None]


def _by_setting(cells: Measured, kind: str, metric: str) -> dict[float, Value]:
    """The metric at each setting, over the seeds."""
    found: dict[float, list[float]] = {}
    for cell, results in cells:
        entry = _named(results, metric)
        if cell.kind == kind and cell.at is not None and entry is not None:
            found.setdefault(cell.at, []).append(entry)
    return {at: Value.of(values) for at, values in sorted(found.items())}


def _named(results: Results, metric: str) -> float | None:
    entry = results.find(metric)
    return None if entry is None else entry.value


def own_value(one: Contestant, metric: str) -> Value | None:
    """The metric at the contestant's own settings, on as many images and seeds as its grid."""
    seeds = {cell.seed for cell, _ in one.grid}
    cells = one.own or [pair for pair in one.final if not seeds or pair[0].seed in seeds]
    values = [value for _, results in cells if (value := _named(results, metric)) is not None]
    return Value.of(values) if values else None


def through(points: Sequence[tuple[float, Value]], marked: tuple[float, Value] | None) -> list[tuple[float, Value]]:
    """The line through the contestant's own settings, too, where no other point says as much."""
    known = {y.mean for _, y in points}
    own = [marked] if known and marked is not None and marked[1].mean not in known else []
    return sorted([*points, *own], key=lambda point: point[0])


def _latency(contestants: Sequence[Contestant], distance: str) -> Picture | None:
    traces, milliseconds = [], describe("latency_s").scale
    for index, one in enumerate(contestants):
        by_steps: Mapping[float, Value] = _by_setting(one.grid, "steps", "fd")
        points = [
            (milliseconds(one.times.steps[int(at)]), value)
            for at, value in by_steps.items()
            if int(at) in one.times.steps
        ]
        own = own_value(one, "fd")
        if own is not None:
            marked = (milliseconds(one.latency.mean), own)
            traces.append(Trace(one.name, index, through(points, marked), marked))
    up = f"{distance}, lower is better"
    return plot("Quality against latency", "ms to one image", up, traces) if traces else None


def _settings(
    contestants: Sequence[Contestant], kind: str, across: str, up: str, metric: str, passes: bool = False
) -> Picture | None:
    """A metric against one sampling setting; passes: against the network passes that it means."""
    traces = []
    for index, one in enumerate(contestants):
        points = list(_by_setting(one.grid, kind, metric).items())
        own = own_value(one, metric)
        here = one.pooled.cost.get("network_passes") if passes else one.pooled.sampling.get(kind)
        marked = (float(here), own) if own is not None and here is not None else None
        if passes:
            points = [(one.passes[int(at)], value) for at, value in points]
            marked = marked if points or marked else None
        if points or (passes and marked):
            traces.append(Trace(one.name, index, through(points, marked), marked, metric))
    name = up.partition(",")[0]
    return plot(f"{name} against {across}", across, up, traces) if any(trace.points for trace in traces) else None


def _course(contestants: Sequence[Contestant], distance: str) -> Picture | None:
    """With the floor of as many images as were measured on the way: of fewer images it is higher."""
    traces, floors = [], set[float | None]()
    for index, one in enumerate(contestants):
        points = _by_setting(one.course, "images", "fd")
        if not points:
            continue
        floors |= {entry.floor for _, results in one.course if (entry := results.find("fd")) is not None}
        last = one.meter.images if one.meter is not None else None
        seeds = {cell.seed for cell, _ in one.course}
        same = {results.measurements[0].n for _, results in one.course} == {one.final[0][1].measurements[0].n}
        if last is not None and same:
            values = [_named(results, "fd") for cell, results in one.final if cell.seed in seeds]
            points[float(last)] = Value.of([value for value in values if value is not None])
        traces.append(Trace(one.name, index, sorted(points.items())))
    floor = floors.pop() if len(floors) == 1 else None
    up = f"{distance}, lower is better"
    return plot("Quality as training goes", "images seen", up, traces, floor) if traces else None
