"""What came out of a sweep: figures over the seeds, fronts, dominated settings; as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from artok.studies.grid import Cell, Plan
from artok.studies.grid_columns import (
    BITS,
    LATENCY,
    PSNR,
    TOKENS,
    Column,
    columns,
    distances,
)
from artok.studies.grid_point import Record, read_record
from artok.studies.pareto import Dominated, Objective, Value, dominated, front

FORMAT = 2  # of results.json


@dataclass(frozen=True)
class Outcome:
    """A cell and its figures. records: of each seed."""

    cell: Cell
    values: Mapping[str, Value]
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Front:
    """quality against cost: the names of the cells that no other surpasses in both."""

    quality: Column
    cost: Column
    names: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """columns: those that any cell has. dominated: cells that another surpasses in all of `objectives`."""

    planned: Plan
    columns: tuple[Column, ...]
    outcomes: tuple[Outcome, ...]
    fronts: tuple[Front, ...]
    objectives: tuple[Column, ...]
    dominated: tuple[Dominated, ...]

    def outcome(self, name: str) -> Outcome:
        return next(outcome for outcome in self.outcomes if outcome.cell.name == name)


def found(planned: Plan) -> Findings:
    """The findings of a sweep all of whose cells are measured."""
    return find_out(planned, [read_record(trial) for cell in planned.cells for trial in cell.trials])


def find_out(planned: Plan, records: Sequence[Record]) -> Findings:
    """The findings of all cells' records."""
    study = planned.study
    extractor = study.evaluation.extractor
    outcomes = []
    for cell in planned.cells:
        own = tuple(record for record in records if record.cell == cell.name)
        names = [name for name in own[0].values if all(name in record.values for record in own)]
        values = {name: Value.of([record.values[name] for record in own]) for name in names}
        outcomes.append(Outcome(cell, values, own))
    known = {name for outcome in outcomes for name in outcome.values}
    settings = {outcome.cell.name: outcome.values for outcome in outcomes}
    lost, made = distances(extractor)
    pairs = [(lost, TOKENS), (lost, BITS), (made, TOKENS), (made, BITS), (made, LATENCY)]
    fronts = [
        Front(quality, cost, tuple(front(settings, [_objective(quality), _objective(cost)])))
        for quality, cost in pairs
        if quality.name in known and cost.name in known
    ]
    # Latency is left out: it follows the tokens, and its noise would make the verdict differ from run to run.
    objectives = tuple(each for each in (lost, PSNR, made, TOKENS, BITS) if each.name in known)
    beaten = dominated(settings, [_objective(each) for each in objectives])
    every = tuple(each for each in columns(extractor, study.robustness.shares) if each.name in known)
    return Findings(planned, every, tuple(outcomes), tuple(fronts), objectives, tuple(beaten))


def _objective(column: Column) -> Objective:
    assert column.better in ("higher", "lower")
    return Objective(column.name, column.better)


# ---------------------------------------------------------------------------------------------- files


def as_json(findings: Findings) -> dict[str, Any]:
    """Everything but the pictures, as plain values; what depends on the machine stands under `times`."""
    study = findings.planned.study
    timed = {column.name for column in findings.columns if column.timed}

    def split(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "values": {name: value for name, value in values.items() if name not in timed},
            "times": {name: value for name, value in values.items() if name in timed},
        }

    def lines(is_timed: bool) -> dict[str, list[str]]:
        return {
            f"{front.quality.name} against {front.cost.name}": list(front.names)
            for front in findings.fronts
            if front.cost.timed == is_timed
        }

    cells = [
        {
            "name": outcome.cell.name,
            "settings": dict(outcome.cell.labels),
            "layout": outcome.cell.layout.to_dict(),
            **split({name: asdict(value) for name, value in outcome.values.items()}),
            "seeds": [
                {"seed": record.seed, **split(record.values), "entropy_by_position_bits": record.positions}
                for record in outcome.records
            ],
        }
        for outcome in findings.outcomes
    ]
    return {
        "format": FORMAT,
        "study": study.model_dump(mode="json"),
        "cells": cells,
        "skipped": [{"settings": dict(labels), "reason": reason} for labels, reason in findings.planned.skipped],
        "fronts": lines(False),
        "times": {"fronts": lines(True)},
        "objectives": [column.name for column in findings.objectives],
        "dominated": [asdict(each) for each in findings.dominated],
    }


def as_csv(findings: Findings) -> str:
    """A line for each cell and seed, a column for each axis and figure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    axes = [axis.name for axis in findings.planned.axes]
    writer.writerow(["cell", *axes, "seed", *(column.name for column in findings.columns)])
    for outcome in findings.outcomes:
        for record in outcome.records:
            labels = [outcome.cell.labels[axis] for axis in axes]
            figures = [record.values.get(column.name, "") for column in findings.columns]
            writer.writerow([outcome.cell.name, *labels, record.seed, *figures])
    return stream.getvalue()
