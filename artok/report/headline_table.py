"""The headline of a study: a line per entry, the nearest to real images first, and one of real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from artok.evaluation.statistics import Value, format_mean
from artok.metrics.catalogue import describe, head
from artok.studies.results import EntryResults

QUALITIES = ("precision", "recall", "coverage", "class_consistency", "prompt_match")
COSTS = ("latency_s", "throughput_images_per_s", "train_core_seconds")
REAL = "real images"  # the last line: floors, where there are any


@dataclass(frozen=True)
class HeadlineTable:
    """header: of the columns after the name. rows: name and cells; empty cells where nothing was measured."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def headline_table(entries: Sequence[EntryResults]) -> HeadlineTable:
    """Quality, diversity, fidelity to the class, time and training of all, in the order of their Fréchet distance."""
    names = ["fd", *(name for name in QUALITIES if any(one.value(name) for one in entries)), *COSTS]
    order = sorted(entries, key=lambda one: value.mean if (value := one.value("fd")) else float("inf"))
    first = order[0].final[0][1]
    known = {name: first.find(name) for name in names}
    rows = [(one.entry.title, tuple(_text(name, one.value(name)) for name in names)) for one in order]
    floors = {name: entry.floor for name, entry in known.items() if entry is not None and entry.floor is not None}
    if floors:
        real = tuple(describe(name).format(floors[name], digits=3) if name in floors else "" for name in names)
        rows.append((REAL, real))
    return HeadlineTable(tuple(entry.head if (entry := known[name]) else head(name) for name in names), tuple(rows))


def _text(name: str, value: Value | None) -> str:
    return "" if value is None else format_mean(value, describe(name))
