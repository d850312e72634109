"""The headline of a study: a line a contestant, the nearest to real images first, and one of real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from artok.evaluation.statistics import Value, shown
from artok.metrics.catalogue import measured
from artok.metrics.results import number
from artok.studies.results import Contestant

QUALITIES = ("precision", "recall", "class consistency")
REAL = "real images"  # the last line: floors, where there are any


@dataclass(frozen=True)
class Glance:
    """header: of the columns after the name. rows: name and cells; empty cells where nothing was measured."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def glance(contestants: Sequence[Contestant]) -> Glance:
    """Quality, diversity, fidelity to the class, time and training of all, in the order of their Fréchet distance."""
    names = (contestants[0].distance, *(name for name in QUALITIES if any(one.value(name) for one in contestants)))
    order = sorted(contestants, key=lambda one: _mean(one, names[0]))
    rows = [(one.name, (*(_text(one.value(name)) for name in names), *_costs(one))) for one in order]
    floors = [measured(order[0].final[0][1], name) for name in names]
    real = [_short(entry.floor) if entry is not None and entry.floor is not None else "" for entry in floors]
    if any(real):
        rows.append((REAL, (*real, "", "", "")))
    return Glance((*names, "ms to one image", "images a second", "core-seconds of training"), tuple(rows))


def _costs(one: Contestant) -> tuple[str, str, str]:
    return shown(one.latency), _short(one.times.best[1]), _text(one.core_seconds)


def _mean(one: Contestant, name: str) -> float:
    value = one.value(name)
    return float("inf") if value is None else value.mean


def _text(value: Value | None) -> str:
    return "" if value is None else shown(value)


def _short(value: float) -> str:
    return number(float(f"{value:.3g}"))
