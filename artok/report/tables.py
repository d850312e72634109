"""The table of metrics of several runs, grouped by what they measure, each with its meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from artok.evaluation.statistics import Comparison, Value
from artok.metrics.catalogue import describe
from artok.metrics.quantity import GROUPS, Better, Quantity
from artok.metrics.results import Results, side_by_side


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One metric. title: with the unit. size: images measured, and real ones compared with where it compares sets."""

    title: str
    about: Quantity
    cells: tuple[Cell, ...]
    floor: str
    size: str


@dataclass(frozen=True)
class Figures:
    """columns: names of the runs. groups: title and rows. notes: below the table."""

    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    notes: tuple[str, ...]


def figures(
    results: Sequence[Results], same_tokens: bool = True, values: Sequence[Mapping[str, Value]] | None = None
) -> Figures:
    """The results side by side; an ArtokError when they cannot be compared (see `side_by_side`).

    same_tokens: whether all runs have one tokenizer: likelihoods of different tokens have no best.
    values: of each result, the means and spreads of what was measured over several seeds; then all that cannot be told
    apart from the best are marked.
    """
    several = values or [{} for _ in results]
    table = side_by_side(results)
    rows: dict[str, list[Row]] = {group: [] for group in GROUPS}
    for name, (title, *texts, floor, size) in zip(table.names, table.rows, strict=True):
        about = describe(name)
        ranked = same_tokens or about.group != "Likelihood"
        means = [_value(result, name) for result in results]
        best = _best(means, about.better, _floor(results, name), ranked)
        best = _alike(best, [each.get(name) for each in several], about.better)
        texts = [
            about.format(each[name].mean, each[name].spread) if name in each else text
            for text, each in zip(texts, several, strict=True)
        ]
        cells = tuple(Cell(text, column in best) for column, text in enumerate(texts))
        rows[about.group].append(Row(title, about, cells, floor, size))
    groups = tuple((group, tuple(members)) for group, members in rows.items() if members)
    return Figures(table.header[1:-2], groups, table.notes)


def _value(results: Results, name: str) -> float | None:
    found = results.find(name)
    return results.cost.get(name) if found is None else found.value


def _floor(results: Sequence[Results], name: str) -> float | None:
    floors = (entry.floor for result in results for entry in result.measurements if entry.name == name)
    return next((floor for floor in floors if floor is not None), None)


def _best(values: Sequence[float | None], better: Better, floor: float | None, ranked: bool) -> set[int]:
    """Columns with the best value; none when there is nothing to choose between."""
    known = {column: value for column, value in enumerate(values) if value is not None}
    if not ranked or len(set(known.values())) < 2 or not better or (better == "at the floor" and floor is None):
        return set()
    merit = {
        "higher": lambda value: value,
        "lower": lambda value: -value,
        "at the floor": lambda value: -abs(value - (floor or 0.0)),
    }[better]
    top = max(map(merit, known.values()))
    return {column for column, value in known.items() if merit(value) == top}


def _alike(best: set[int], values: Sequence[Value | None], better: Better) -> set[int]:
    """The best columns with those that seeds alone may set apart from them; none where that is all of them."""
    top = next((str(column) for column in best if values[column] is not None), None)
    if top is None:
        return best
    known = {str(column): value for column, value in enumerate(values) if value is not None}
    compared = Comparison(known, "lower" if better == "lower" else "higher")
    alike = {int(column) for column in known if compared.differ(column, top) is False}
    return set() if len(alike) == len(values) else best | alike
