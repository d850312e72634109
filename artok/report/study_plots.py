"""Which plots a study's page shows: quality against cost, sampling settings and images seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from artok.evaluation.statistics import Value
from artok.metrics.catalogue import describe, head
from artok.report.data_uris import Picture
from artok.report.plots.lines import Line, line_plot
from artok.studies.results import EntryResults, Measured


def plots(entries: Sequence[EntryResults]) -> list[Picture]:
    """Quality against latency, passes, guidance and images seen, diversity against passes and guidance; what there
    is."""
    distance = f"{entries[0].final[0][1]['fd'].title}, lower is better"
    found: list[Picture | None] = [
        _latency(entries, distance),
        _settings(entries, "steps", "network passes", distance, "fd", passes=True),
        _settings(entries, "steps", "network passes", "recall, higher is better", "recall", passes=True),
        _settings(entries, "steps", "network passes", "coverage, higher is better", "coverage", passes=True),
        _settings(entries, "cfg_scale", "guidance scale", distance, "fd"),
        _settings(entries, "cfg_scale", "guidance scale", "recall, higher is better", "recall"),
        _settings(entries, "cfg_scale", "guidance scale", "precision, higher is better", "precision"),
        _course(entries, distance),
    ]
    return [picture for picture in found if picture is not None]


def _by_setting(records: Measured, kind: str, metric: str) -> dict[float, Value]:
    """The metric at each setting, over the seeds."""
    found: dict[float, list[float]] = {}
    for record, results in records:
        entry = results.find(metric)
        if record.kind == kind and record.at is not None and entry is not None:
            found.setdefault(record.at, []).append(entry.value)
    return {at: Value.of(values) for at, values in sorted(found.items())}


def own_value(one: EntryResults, metric: str) -> Value | None:
    """The metric at the entry's own settings, on as many images and seeds as its grid."""
    seeds = {record.seed for record, _ in one.grid}
    records = one.own or [pair for pair in one.final if not seeds or pair[0].seed in seeds]
    values = [entry.value for _, results in records if (entry := results.find(metric)) is not None]
    return Value.of(values) if values else None


def line(
    one: EntryResults, number: int, points: Sequence[tuple[float, Value]], own: tuple[float, Value] | None = None
) -> Line:
    """An entry's points, with a ring at its own settings."""
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


def _latency(entries: Sequence[EntryResults], distance: str) -> Picture | None:
    shown = describe("latency_s").scale
    traces = list[Line]()
    for index, one in enumerate(entries):
        own, latency = own_value(one, "fd"), one.value("latency_s")
        if own is None or latency is None or one.times is None:
            continue
        by_steps: Mapping[float, Value] = _by_setting(one.grid, "steps", "fd")
        times = one.times.steps
        points = [(shown(times[int(at)]), value) for at, value in by_steps.items() if int(at) in times]
        traces.append(line(one, index, points, (shown(latency.mean), own)))
    return line_plot("Quality against latency", head("latency_s"), distance, traces) if traces else None


def _settings(
    entries: Sequence[EntryResults], kind: str, across: str, up: str, metric: str, passes: bool = False
) -> Picture | None:
    """A metric against one sampling setting; passes: against the network passes that it means."""
    traces, varied = list[Line](), False
    for index, one in enumerate(entries):
        points = list(_by_setting(one.grid, kind, metric).items())
        own = own_value(one, metric)
        here = one.table.cost.get("network_passes") if passes else one.table.sampling.get("cfg_scale")
        marked = (float(here), own) if own is not None and here is not None else None
        if passes:
            points = [(one.passes[int(at)], value) for at, value in points]
            marked = marked if points or marked else None
        varied = varied or bool(points)
        if points or (passes and marked):
            traces.append(line(one, index, points, marked))
    name = up.partition(",")[0]
    return line_plot(f"{name} against {across}", across, up, traces) if varied else None


def _course(entries: Sequence[EntryResults], distance: str) -> Picture | None:
    """With the floor of as many images as were measured on the way: of fewer images it is higher."""
    traces, floors = list[Line](), set[float | None]()
    for index, one in enumerate(entries):
        points = _by_setting(one.course, "images", "fd")
        if not points:
            continue
        floors |= {entry.floor for _, results in one.course if (entry := results.find("fd")) is not None}
        seeds = {record.seed for record, _ in one.course}
        same = {results.measurements[0].n for _, results in one.course} == {one.final[0][1].measurements[0].n}
        if one.training is not None and same:
            last = [results["fd"].value for record, results in one.final if record.seed in seeds]
            points[float(one.training.images)] = Value.of(last)
        traces.append(line(one, index, sorted(points.items())))
    floor = floors.pop() if len(floors) == 1 else None
    return line_plot("Quality as training goes", "images seen", distance, traces, floor, log="y") if traces else None
