"""The page of a sweep: tables, fronts, heat maps and pictures of every cell; results.json and results.csv beside it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from artok import __version__
from artok.config import dump
from artok.evaluation.evaluator import RESULTS as MEASURED
from artok.metrics.results import Measurement, Results
from artok.report import images as gallery
from artok.report import sweep_images as sweep_gallery
from artok.report import sweep_text as sweep_summary
from artok.report.data_uris import Picture
from artok.report.plots.heatmaps import heat_map
from artok.report.plots.tradeoffs import Point, trade_off
from artok.report.provenance import machine
from artok.report.run import template
from artok.report.sweep_images import SweepGallery
from artok.report.tables import Cell as Figure
from artok.report.text import joined
from artok.saved import write_json, write_text
from artok.studies.grid import GENERATOR, TOKENIZER, Plan
from artok.studies.grid_columns import (
    BITS,
    BITS_PER_PIXEL,
    GENERATOR_TIME,
    LATENCY,
    MEMORY,
    PERPLEXITY,
    PSNR,
    RATE,
    TOKENIZER_TIME,
    USAGE,
    Column,
    generation_distance,
    perturbed_distance,
    reconstruction_distance,
)
from artok.studies.grid_point import runs_of
from artok.studies.grid_results import Findings, Front, Outcome, as_csv, as_json, found
from artok.studies.pareto import Dominated

PAGE, RESULTS, TABLE = "report.html", "results.json", "results.csv"
TEMPLATE = "sweep.html.jinja"


@dataclass(frozen=True)
class Row:
    """A setting's figures."""

    title: str
    cells: tuple[Figure, ...]


@dataclass(frozen=True)
class Table:
    """A row per setting."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


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
class SweepPart:
    """What a page shows of a sweep. skipped: title and reason. size: what was measured, in words.
    yaml: the study."""

    title: str
    intro: str
    summary: list[str]
    hedges: list[str]
    fronts: list[Picture]
    objectives: str
    dominated: list[Beaten]
    dominated_columns: list[str]
    skipped: list[tuple[str, str]]
    maps: list[Map]
    gallery: SweepGallery
    generators: bool
    seed: int
    tables: list[Table]
    size: str
    yaml: str


def write_sweep(planned: Plan, device: str) -> Path:
    """Write the files of a finished sweep into its folder. The page."""
    findings = found(planned)
    write_json(planned.folder / RESULTS, as_json(findings))
    write_text(planned.folder / TABLE, as_csv(findings))
    write_text(planned.folder / PAGE, render(findings, device))
    return planned.folder / PAGE


def render(findings: Findings, device: str) -> str:
    """The page's HTML."""
    whole = part(findings, device)
    return template(TEMPLATE).render(
        title=whole.title,
        intro=whole.intro,
        sweep=whole,
        facts=facts(findings),
        command="artok sweep study.yaml",
        yaml=whole.yaml,
    )


def part(findings: Findings, device: str, brief: bool = False) -> SweepPart:
    """What a page shows. brief: with the few plots that matter most, as one part among others."""
    study = findings.planned.study
    extractor = study.evaluation.extractor
    fronts = [front for front in findings.fronts if not brief or front.cost in (BITS, LATENCY)]
    few = {reconstruction_distance(extractor), generation_distance(extractor), RATE} if brief else None
    return SweepPart(
        title=study.title or f"Sweep {study.name}",
        intro=study.intro
        or f"{study.tokenizer} in {len(findings.outcomes)} settings: what each keeps of an image, and what it costs.",
        summary=sweep_summary.paragraphs(findings, _distance(findings).n),
        hedges=sweep_summary.hedges(findings),
        fronts=[front_plot(findings, front) for front in fronts],
        objectives=joined([column.label for column in findings.objectives]),
        dominated=[beaten(findings, each) for each in findings.dominated],
        dominated_columns=[column.head for column in findings.objectives],
        skipped=[(title(labels), reason) for labels, reason in findings.planned.skipped],
        maps=list(maps(findings, few)),
        gallery=sweep_gallery.show(findings, device),
        generators=study.generator is not None,
        seed=gallery.SEED,
        tables=list(tables(findings)),
        size=measured_text(findings),
        yaml=dump(study),
    )


def title(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())


# ---------------------------------------------------------------------------------------------- plots


def axes_of(findings: Findings) -> list[tuple[str, list[str]]]:
    """Name and labels of each axis of the grid."""
    return [(axis.name, [entry.label for entry in axis.entries]) for axis in findings.planned.axes]


def front_plot(findings: Findings, front: Front) -> Picture:
    """A marker for the first axis and a colour for the others; with one axis, colours alone."""
    (first, labels), *others = axes_of(findings)
    markers = [f"{first} {label}" for label in labels]
    name = " ".join(name for name, _ in others)
    colours = [f"{name} {' '.join(labels)}" for labels in itertools.product(*(labels for _, labels in others))]
    points = []
    for outcome in findings.outcomes:
        pair = [outcome.values.get(column.name) for column in (front.cost, front.quality)]
        if pair[0] is None or pair[1] is None:
            continue
        x, y = front.cost.scaled(pair[0]), front.quality.scaled(pair[1])
        own, *rest = outcome.cell.labels.values()
        marker, colour = f"{first} {own}", f"{name} {' '.join(rest)}"
        marks = {"colour": colour, "marker": marker} if others else {"colour": marker}
        points.append(Point(outcome.cell.name, x.mean, y.mean, x.spread, y.spread, **marks))
    what = "Samples" if front.quality.side == "generator" else "Reconstructions"
    heading = f"{what} against {front.cost.label}"
    legend = (colours, markers) if others else (markers,)
    return trade_off(heading, front.cost.head, front.quality.head, points, front.names, *legend)


def maps(findings: Findings, few: Collection[Column] | None = None) -> Iterator[Map]:
    """A heat map of each column worth one, or of `few` of them; with more than two axes, one for each combination of
    the others."""
    study = findings.planned.study
    extractor = study.evaluation.extractor
    wanted = [
        reconstruction_distance(extractor),
        PSNR,
        *(perturbed_distance(extractor, share) for share in study.robustness.shares[:1]),
        USAGE,
        PERPLEXITY,
        BITS_PER_PIXEL,
        generation_distance(extractor),
        RATE,
        LATENCY,
        MEMORY,
    ]
    first, *others = axes_of(findings)
    rows, columns, others = (first, others[0], others[1:]) if others else (("", [""]), first, [])
    cells = {tuple(outcome.cell.labels.values()): outcome for outcome in findings.outcomes}
    for column in wanted:
        if column not in findings.columns or (few is not None and column not in few):
            continue
        for rest in itertools.product(*(labels for _, labels in others)):
            values = [
                [_shown(cells.get((row, label, *rest) if row else (label,)), column) for label in columns[1]]
                for row in rows[1]
            ]
            if any(value is not None for row in values for value in row):
                where = "".join(f", {name} {label}" for (name, _), label in zip(others, rest, strict=True))
                heading, unit, better = column.label + where, column.unit, column.better
                picture = heat_map(heading, values, rows[1], columns[1], rows[0], columns[0], unit, better)
                yield Map(picture, column.quantity.text)


def _mean(outcome: Outcome | None, column: Column) -> float | None:
    value = outcome.values.get(column.name) if outcome else None
    return value.mean if value else None


def _shown(outcome: Outcome | None, column: Column) -> float | None:
    """In the unit that people read."""
    mean = _mean(outcome, column)
    return None if mean is None else column.quantity.scale(mean)


# ---------------------------------------------------------------------------------------------- tables


def tables(findings: Findings) -> Iterator[Table]:
    """One of the tokenizers, one of the generators."""
    for side, caption in ((TOKENIZER, "Tokenizers"), (GENERATOR, "Generators")):
        columns = tuple(column for column in findings.columns if column.side == side)
        if not columns:
            continue
        best = {column.name: _best(findings, column) for column in columns}
        rows = tuple(
            Row(
                outcome.cell.title,
                tuple(
                    Figure(
                        column.text(value) if (value := outcome.values.get(column.name)) is not None else "",
                        best[column.name] is not None and _mean(outcome, column) == best[column.name],
                    )
                    for column in columns
                ),
            )
            for outcome in findings.outcomes
        )
        yield Table(caption, columns, rows)


def _best(findings: Findings, column: Column) -> float | None:
    """The best mean, where values differ and there is a better."""
    values = [value for outcome in findings.outcomes if (value := _mean(outcome, column)) is not None]
    if not column.better or len(set(values)) < 2:
        return None
    return max(values) if column.better == "higher" else min(values)


def beaten(findings: Findings, each: Dominated) -> Beaten:
    gains = []
    for column in findings.objectives:
        pair = each.gains.get(column.name)
        texts = [column.quantity.format(value, digits=3) for value in reversed(pair)] if pair else []
        gains.append(" for ".join(texts))
    return Beaten(findings.outcome(each.name).cell.title, findings.outcome(each.by).cell.title, tuple(gains))


# ---------------------------------------------------------------------------------------------- origin


def _distance(findings: Findings) -> Measurement:
    """The Fréchet distance of the first tokenizer, whose N, features and floor are those of all."""
    results = Results.load(findings.outcomes[0].cell.trials[0].folder / TOKENIZER / MEASURED)
    return next(entry for entry in results.measurements if entry.dim is not None)


def measured_text(findings: Findings) -> str:
    entry = _distance(findings)
    floor = f" The same distance between as many training images and the held-out ones is {entry.floor:.3g}."
    return f"Measured on {entry.n:,} held-out images." + (floor if entry.floor is not None else "")


def facts(findings: Findings) -> dict[str, str]:
    """Term to text: what all figures of the page share."""
    planned = findings.planned
    run = runs_of(findings.outcomes[0].cell.trials[0])[0]
    entry = _distance(findings)
    spent = [
        value.mean * value.seeds
        for outcome in findings.outcomes
        for name in (TOKENIZER_TIME.name, GENERATOR_TIME.name)
        if (value := outcome.values.get(name)) is not None
    ]
    trained = {"training": f"{sum(spent):,.0f} core-seconds in all"} if spent else {}
    budget = {"budget of a generator": sweep_summary.budget_text(planned.study)} if planned.study.generator else {}
    return {
        "artok": __version__,
        "data": f"{run.data.kind}, {'x'.join(map(str, run.saved.facts.image))}, fingerprint {run.saved.facts.data}",
        "images measured": f"{entry.n:,}, against {entry.reference_n:,} held out",
        "features": f"{entry.extractor}, fingerprint {entry.fingerprint}, {entry.dim} dimensions",
        "seeds": ", ".join(map(str, planned.study.seeds)),
        **budget,
        **trained,
        "machine of this page": machine(),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
