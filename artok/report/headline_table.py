"""The headline of a study: a line a contestant, the nearest to real images first, and one of real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from artok.evaluation.statistics import Value, format_mean
from artok.metrics.catalogue import describe, head
from artok.studies.results import Contestant

QUALITIES = ("precision", "recall", "class_consistency")
COSTS = ("latency_s", "throughput_images_per_s", "train_core_seconds")
REAL = "real images"  # the last line: floors, where there are any


@dataclass(frozen=True)
class Glance:
    """header: of the columns after the name. rows: name and cells; empty cells where nothing was measured."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def glance(contestants: Sequence[Contestant]) -> Glance:
    """Quality, diversity, fidelity to the class, time and training of all, in the order of their Fréchet distance."""
    names = ("fd", *(name for name in QUALITIES if any(one.value(name) for one in contestants)))
    first = contestants[0].final[0][1]
    titles = [entry.title if (entry := first.find(name)) is not None else head(name) for name in names]
    order = sorted(contestants, key=lambda one: _mean(one, names[0]))
    rows = [(one.name, (*(_text(name, one.value(name)) for name in names), *_costs(one))) for one in order]
    floors = [order[0].final[0][1].find(name) for name in names]
    real = [
        describe(entry.name).format(entry.floor, digits=3) if entry is not None and entry.floor is not None else ""
        for entry in floors
    ]
    if any(real):
        rows.append((REAL, (*real, "", "", "")))
    return Glance((*titles, *map(head, COSTS)), tuple(rows))


def _costs(one: Contestant) -> tuple[str, str, str]:
    throughput = Value(one.times.best[1])
    latency, speed, training = map(_text, COSTS, (one.latency, throughput, one.core_seconds))
    return latency, speed, training


def _mean(one: Contestant, name: str) -> float:
    value = one.value(name)
    return float("inf") if value is None else value.mean


def _text(name: str, value: Value | None) -> str:
    return "" if value is None else format_mean(value, describe(name))
