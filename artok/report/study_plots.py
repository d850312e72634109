"""Which plots a study's page shows: quality against cost, sampling settings and images seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from artok.evaluation.statistics import Value
from artok.metrics.catalogue import describe
from artok.metrics.results import Results
from artok.report.data_uris import Picture
from artok.report.plots.lines import Line, line_plot
from artok.studies.results import Contestant, Measured


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


def line(
    one: Contestant, number: int, points: Sequence[tuple[float, Value]], own: tuple[float, Value] | None = None
) -> Line:
    """A contestant's points, with a ring at its own settings."""
    known = list(points)
    if own is not None and own not in known:
        if any(value.mean == own[1].mean for _, value in known):
            known = [own if value.mean == own[1].mean else (x, value) for x, value in known]
        else:
            known = [*known, own]
    known = sorted(known, key=lambda point: point[0])
    return Line(
        one.name,
        [x for x, _ in known],
        [value.mean for _, value in known],
        [value.spread for _, value in known],
        number,
        marked=None if own is None else known.index(own),
    )


def _latency(contestants: Sequence[Contestant], distance: str) -> Picture | None:
    traces, scale = list[Line](), describe("latency_s").scale
    for index, one in enumerate(contestants):
        by_steps: Mapping[float, Value] = _by_setting(one.grid, "steps", "fd")
        points = [
            (scale(one.times.steps[int(at)]), value) for at, value in by_steps.items() if int(at) in one.times.steps
        ]
        own = own_value(one, "fd")
        if own is not None:
            marked = (scale(one.latency.mean), own)
            traces.append(line(one, index, points, marked))
    up = f"{distance}, lower is better"
    return line_plot("Quality against latency", "ms per image", up, traces) if traces else None


def _settings(
    contestants: Sequence[Contestant], kind: str, across: str, up: str, metric: str, passes: bool = False
) -> Picture | None:
    """A metric against one sampling setting; passes: against the network passes that it means."""
    traces, varied = list[Line](), False
    for index, one in enumerate(contestants):
        points = list(_by_setting(one.grid, kind, metric).items())
        own = own_value(one, metric)
        here = one.pooled.cost.get("network_passes") if passes else one.pooled.sampling.get("cfg_scale")
        marked = (float(here), own) if own is not None and here is not None else None
        if passes:
            points = [(one.passes[int(at)], value) for at, value in points]
            marked = marked if points or marked else None
        varied = varied or bool(points)
        if points or (passes and marked):
            traces.append(line(one, index, points, marked))
    name = up.partition(",")[0]
    return line_plot(f"{name} against {across}", across, up, traces) if varied else None


def _course(contestants: Sequence[Contestant], distance: str) -> Picture | None:
    """With the floor of as many images as were measured on the way: of fewer images it is higher."""
    traces, floors = list[Line](), set[float | None]()
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
        traces.append(line(one, index, sorted(points.items())))
    floor = floors.pop() if len(floors) == 1 else None
    up = f"{distance}, lower is better"
    return line_plot("Quality as training goes", "images seen", up, traces, floor, log="y") if traces else None
