"""What a page shows of a grid of settings: Pareto fronts, dominated settings, heat maps, pictures and tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from artok.evaluation.statistics import Comparison, Value
from artok.report import images as gallery
from artok.report.data_uris import Picture
from artok.report.grid_images import SettingsGallery, show_settings
from artok.report.plots.heatmaps import heat_map
from artok.report.plots.tradeoffs import Point, trade_off
from artok.report.tables import Cell
from artok.report.text import joined
from artok.studies.grid import read_axes
from artok.studies.results import EntryResults, Outcome
from artok.studies.tradeoffs import Column, Front, Tradeoffs, find_tradeoffs

MAPPED = ("fd", "psnr_db", "codebook_usage", "perplexity", "bits_per_pixel", "bits_per_dim", "latency_s")
MAPPED_BESIDE = ("fd", "bits_per_dim")  # on the page of another study
COSTS_BESIDE = ("bits_per_image", "latency_s")


@dataclass(frozen=True)
class GridTable:
    """A row per setting, a column per figure."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Map:
    """A heat map with what it shows."""

    picture: Picture
    text: str


@dataclass(frozen=True)
class Beaten:
    """A dominated setting; gains: for each objective how the other is better, or an empty text."""

    title: str
    by: str
    gains: tuple[str, ...]


@dataclass(frozen=True)
class GridPart:
    """skipped: title and reason. generators: whether any were trained. sure: whether several seeds tell the noise."""

    fronts: list[Picture]
    objectives: str
    sure: bool
    dominated: list[Beaten]
    dominated_columns: list[str]
    skipped: list[tuple[str, str]]
    maps: list[Map]
    gallery: SettingsGallery
    generators: bool
    seed: int
    tables: list[GridTable]


def grid_part(outcome: Outcome, device: str, beside: bool = False) -> GridPart:
    """What a page shows. beside: with the few plots that matter most, as one part of another study's page."""
    found = find_tradeoffs(outcome)
    fronts = [front for front in found.fronts if not beside or front.cost.metric in COSTS_BESIDE]
    return GridPart(
        fronts=[front_plot(outcome, front) for front in fronts],
        objectives=joined([column.title for column in found.objectives]),
        sure=len(outcome.plan.study.seeds) > 1,
        dominated=list(beaten(outcome, found)),
        dominated_columns=[column.head for column in found.objectives],
        skipped=[(point.title, reason) for point, reason in outcome.plan.skipped],
        maps=list(maps(outcome, found, MAPPED_BESIDE if beside else MAPPED)),
        gallery=show_settings(outcome, device),
        generators=bool(outcome.generators),
        seed=gallery.SEED,
        tables=list(tables(outcome, found)),
    )


def _axes(outcome: Outcome) -> list[tuple[str, list[str]]]:
    """Name and labels of each axis of the grid."""
    return [(axis.name, list(axis.settings)) for axis in read_axes(outcome.plan.study)]


def _mean(one: EntryResults | None, column: Column) -> float | None:
    """In the unit that people read."""
    value = column.of(one) if one else None
    return None if value is None else column.quantity.scale(value.mean)


# ---------------------------------------------------------------------------------------------- plots


def front_plot(outcome: Outcome, front: Front) -> Picture:
    """A marker for the first axis and a colour for the others; with one axis, colours alone."""
    (first, labels), *others = _axes(outcome)
    markers = [f"{first} {label}" for label in labels]
    name = " ".join(name for name, _ in others)
    colours = [f"{name} {' '.join(labels)}" for labels in itertools.product(*(labels for _, labels in others))]
    points = []
    for one in outcome.entries:
        x, y = front.cost.of(one), front.quality.of(one)
        if x is None or y is None:
            continue
        own, *rest = one.entry.labels.values()
        marker, colour = f"{first} {own}", f"{name} {' '.join(rest)}"
        marks = {"colour": colour, "marker": marker} if others else {"colour": marker}
        scale = front.cost.quantity.scale
        points.append(Point(one.name, scale(x.mean), y.mean, scale(x.spread), y.spread, **marks))
    what = "Samples" if front.quality.side == "generator" else "Reconstructions"
    legend = (colours, markers) if others else (markers,)
    heading = f"{what} against {front.cost.title}"
    return trade_off(heading, front.cost.head, front.quality.head, points, front.names, *legend)


def maps(outcome: Outcome, found: Tradeoffs, metrics: tuple[str, ...]) -> Iterator[Map]:
    """A heat map per figure; with more than two axes, one for each combination of the others."""
    first, *others = _axes(outcome)
    rows, columns, others = (first, others[0], others[1:]) if others else (("", [""]), first, [])
    by_labels = {tuple(one.entry.labels.values()): one for one in outcome.entries}
    replaced = next((each.metric for each in found.columns if each.metric.startswith("fd/")), "")
    for column in found.columns:
        if column.metric not in (*metrics, replaced if metrics is MAPPED else ""):
            continue
        for rest in itertools.product(*(labels for _, labels in others)):
            values = [
                [_mean(by_labels.get((row, label, *rest) if rows[0] else (label,)), column) for label in columns[1]]
                for row in rows[1]
            ]
            if any(value is not None for row in values for value in row):
                where = "".join(f", {name} {label}" for (name, _), label in zip(others, rest, strict=True))
                unit = column.quantity.display or column.quantity.unit
                labels = rows[1], columns[1], rows[0], columns[0]
                picture = heat_map(column.title + where, values, *labels, unit, column.better)
                yield Map(picture, column.quantity.text)


# ---------------------------------------------------------------------------------------------- tables


def tables(outcome: Outcome, found: Tradeoffs) -> Iterator[GridTable]:
    """One of the tokenizers, one of the generators."""
    for side, caption in (("tokenizer", "Tokenizers"), ("generator", "Generators")):
        columns = tuple(column for column in found.columns if column.side == side)
        if columns:
            best = {column.head: _best(outcome, column) for column in columns}
            rows = tuple(
                (
                    one.entry.title,
                    tuple(_cell(column.of(one), column, one.name in best[column.head]) for column in columns),
                )
                for one in outcome.entries
            )
            yield GridTable(caption, columns, rows)


def _cell(value: Value | None, column: Column, best: bool) -> Cell:
    return Cell("" if value is None else column.quantity.format(value.mean, value.spread), best)


def _best(outcome: Outcome, column: Column) -> set[str]:
    """The best setting with those that cannot be told apart from it; none where that is all of them."""
    values = {one.name: value for one in outcome.entries if (value := column.of(one)) is not None}
    if column.better not in ("higher", "lower") or len({value.mean for value in values.values()}) < 2:
        return set()
    compared = Comparison(values, "higher" if column.better == "higher" else "lower")
    top = (max if column.better == "higher" else min)(values, key=lambda name: values[name].mean)
    alike = {top} | {name for name in values if compared.differ(name, top) is False}
    return set() if len(alike) == len(values) else alike


def beaten(outcome: Outcome, found: Tradeoffs) -> Iterator[Beaten]:
    titles = {one.name: one.entry.title for one in outcome.entries}
    for each in found.dominated:
        gains = []
        for column in found.objectives:
            pair = each.gains.get(column.title)
            own, other = (column.quantity.format(value, digits=3) for value in pair) if pair else ("", "")
            gains.append(f"{other} for {own}" if pair else "")
        yield Beaten(titles[each.name], titles[each.by], tuple(gains))
