"""What a study found: every contestant with its seeds, written as results.json, as a table of all values, as a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from artok import __version__
from artok.errors import ConfigError
from artok.evaluation.run_directory import LOG, Run, open_run
from artok.evaluation.statistics import Value
from artok.metrics.catalogue import describe
from artok.metrics.results import Results, side_by_side
from artok.saved import TOKENIZER
from artok.studies.budget import Meter, known_speeds, meter
from artok.studies.grid_results import Findings
from artok.studies.grid_results import as_json as sweep_json
from artok.studies.measure import Cell, Marks, built, cells_of, read_cell, tokenizers_of
from artok.studies.resolve import Entry, Plan
from artok.studies.timing import Times
from artok.training.health import Finding, diagnose
from artok.training.log import read_log
from artok.training.merged_log import log_interval, merge_resumed_log

FORMAT = 2  # of results.json
RESULTS, TABLE, PAGE = "results.json", "results.csv", "report.html"

Measured = list[tuple[Cell, Results]]


@dataclass(frozen=True)
class Contestant:
    """entry: as planned. runs: by seed, those that can be shown. findings: by seed, what the log says is wrong.

    final: one for each run that can be measured. course, grid, own: further cells, in their order. meter: what its
    training took of every budget, None for finished runs. tokenizer: name of its tokenizer among those measured.
    """

    entry: Entry
    runs: Mapping[int, Run]
    final: Measured
    course: Measured
    grid: Measured
    own: Measured
    findings: Mapping[int, list[Finding]]
    times: Times
    meter: Meter | None
    tokenizer: str | None

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))

    def value(self, metric: str) -> Value | None:
        """Mean and spread of a metric over the seeds; None when it was not measured."""
        found = [entry.value for _, results in self.final for entry in results.measurements if entry.name == metric]
        return Value.of(found) if found else None

    @property
    def values(self) -> dict[str, Value]:
        """Every metric, mean and spread."""
        names = [entry.name for entry in self.final[0][1].measurements]
        return {name: value for name in names if (value := self.value(name)) is not None}

    @property
    def distance(self) -> str:
        """What people read for its Fréchet distance."""
        return self.final[0][1]["fd"].title

    @property
    def latency(self) -> Value:
        """Seconds to one image; the spread is that of the timings."""
        return Value.of(self.times.latency)

    @property
    def passes(self) -> dict[int, int]:
        """Network passes by sampling steps, for those in the grid."""
        config = self.first.saved.generator
        assert config is not None
        generator = built(self.entry, config)
        steps = [cell for cell, _ in self.grid if cell.kind == "steps"]
        return {int(cell.at or 0): generator.passes(cell.sampling) for cell in steps}

    @property
    def tokens(self) -> int:
        """Places in its sequence, several codes at a place counted each."""
        return self.entry.layout.length * self.entry.layout.codes

    @property
    def core_seconds(self) -> Value | None:
        """Of training, over the seeds; None where there is no log of a processor's time."""
        spent = [run.spent for run in self.runs.values() if run.spent is not None]
        found = [each.core_seconds for each in spent if each.device == "cpu" and each.core_seconds]
        return Value.of(found) if found else None

    @property
    def table(self) -> Results:
        """The means with all costs, as they stand in the table of figures."""
        batch, throughput = self.times.best
        exact = dict(self.pooled.cost)
        costs: dict[str, float] = {"tokens_per_image": self.tokens, **exact}
        if self.meter is not None:
            costs |= {"images_trained": self.meter.images}
            costs |= {"train_flops": self.meter.flops_an_image * self.meter.images}
        if self.core_seconds is not None:
            costs |= {"train_core_seconds": self.core_seconds.mean}
        costs |= {"latency_s": self.latency.mean, "throughput_images_per_s": throughput, "best_batch": batch}
        return replace(self.pooled, cost=costs)

    @property
    def pooled(self) -> Results:
        """The results of all seeds as one: each value is the mean."""
        _, first = self.final[0]
        means = []
        for entry in first.measurements:
            value = self.value(entry.name)
            assert value is not None
            means.append(replace(entry, value=value.mean))
        return replace(first, name=self.name, measurements=tuple(means))


@dataclass(frozen=True)
class Outcome:
    """tokenizers: name to results. sweep: what the sweep beside the study found."""

    plan: Plan
    contestants: list[Contestant]
    tokenizers: Mapping[str, Results]
    folders: Mapping[str, Path]
    sweep: Findings | None = None


def gather(plan: Plan, times: Mapping[str, Times]) -> Outcome:
    """Everything that was measured; an ArtokError when results cannot stand side by side."""
    marks = Marks(plan)
    folders = tokenizers_of(plan)
    tokenizers = {name: _read(plan, cells_of(plan, f"{TOKENIZER}:{name}")[0], marks) for name in folders}
    speeds, contestants = known_speeds(plan.study.budget, plan.folder), []
    for entry in plan.entries:
        found = [(cell, _read(plan, cell, marks)) for cell in cells_of(plan, entry.name)]
        final = [pair for pair in found if pair[0].kind == "final"]
        if not final:
            continue
        runs = {cell.seed: _run(plan, cell, results) for cell, results in final}
        contestants.append(
            Contestant(
                entry=entry,
                runs=runs,
                final=final,
                course=[pair for pair in found if pair[0].kind == "images"],
                grid=[pair for pair in found if pair[0].kind in ("steps", "guidance")],
                own=[pair for pair in found if pair[0].kind == "own"],
                findings=dict(_findings(plan, entry)),
                times=times[entry.name],
                meter=meter(plan, entry, speeds),
                tokenizer=_tokenizer_of(entry, folders),
            )
        )
    side_by_side([contestant.pooled for contestant in contestants])
    return Outcome(plan, contestants, tokenizers, folders)


def _run(plan: Plan, cell: Cell, results: Results) -> Run:
    """A contestant's run; one that was trained elsewhere and names no data is shown beside the study's."""
    run = open_run(cell.folder, cell.owner, results)
    own = run.config if run.config.get("data") else {**run.config, "data": plan.data.model_dump(mode="json")}
    return replace(run, config=own)


def _read(plan: Plan, cell: Cell, marks: Marks) -> Results:
    results = read_cell(plan, cell, marks)
    if results is None:
        raise ConfigError(f"{cell.place(plan.folder)} is missing or of other weights; run the study again")
    return results


def _tokenizer_of(entry: Entry, folders: Mapping[str, Path]) -> str | None:
    own = set(entry.tokenizers.values()) | {run / TOKENIZER for run in entry.runs.values()}
    return next((name for name, folder in folders.items() if folder in own), None)


def _findings(plan: Plan, entry: Entry) -> Iterator[tuple[int, list[Finding]]]:
    """Of every seed that has a log."""
    for seed in plan.study.seeds:
        log = read_log(entry.runs[seed] / LOG)
        if log:
            yield seed, diagnose(merge_resumed_log(log, log_interval(entry.runs[seed])))


# ---------------------------------------------------------------------------------------------- results.json


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Plain values. What depends on the machine and its load is under `times`, at whatever depth."""
    study = outcome.plan.study
    first = outcome.contestants[0].final[0][1].measurements[0]
    return {
        "format": FORMAT,
        "artok": __version__,
        "study": study.name,
        "budget": study.budget.model_dump(mode="json") if study.budget else None,
        "seeds": list(study.seeds),
        "extractor": {"name": study.evaluation.extractor, "fingerprint": first.fingerprint},
        "n": first.n,
        "contestants": {each.name: _contestant(outcome, each) for each in outcome.contestants},
        "tokenizers": {name: _measures([results]) for name, results in outcome.tokenizers.items()},
        **({"sweep": sweep_json(outcome.sweep)} if outcome.sweep else {}),
    }


def _contestant(outcome: Outcome, one: Contestant) -> dict[str, Any]:
    study = outcome.plan.study
    return {
        "did": one.entry.did,
        "given": one.entry.given,
        "tokenizer": one.tokenizer,
        "layout": one.entry.layout.to_dict(),
        "training": None if one.meter is None else {**_budgets(one.meter), "seeds": list(one.runs)},
        "measures": _measures([results for _, results in one.final]),
        "cost": {"tokens_per_image": one.tokens, **one.pooled.cost},
        "course": [{"images": cell.at, **_cell(cell, results)} for cell, results in one.course],
        "grid": [{cell.kind: cell.at, **_cell(cell, results)} for cell, results in one.grid],
        "health": {str(seed): [asdict(finding) for finding in found] for seed, found in one.findings.items()},
        "times": {
            "latency_s": list(one.times.latency),
            "throughput_images_per_s": {str(batch): value for batch, value in one.times.throughput.items()},
            "latency_s_by_steps": {str(steps): value for steps, value in one.times.steps.items()},
            "train_core_seconds": {
                str(seed): run.spent.core_seconds for seed, run in one.runs.items() if run.spent is not None
            },
            "speed": one.meter.speed if one.meter is not None else None,
            "seeds": len(study.seeds),
        },
    }


def _budgets(meter: Meter) -> dict[str, float]:
    return {
        "images": meter.images,
        "parameters": meter.parameters,
        "flops": meter.flops_an_image * meter.images,
    }


def _cell(cell: Cell, results: Results) -> dict[str, Any]:
    return {"seed": cell.seed, "values": {entry.name: entry.value for entry in results.measurements}}


def _measures(results: Sequence[Results]) -> dict[str, Any]:
    """Each metric with its values, mean, spread and what they were computed from."""
    found: dict[str, Any] = {}
    for entry in results[0].measurements:
        values = [each.value for result in results for each in result.measurements if each.name == entry.name]
        value = Value.of(values)
        found[entry.name] = {
            "values": values,
            "mean": value.mean,
            "spread": value.spread if value.seeds > 1 else None,
            "floor": entry.floor,
            "n": entry.n,
            "better": describe(entry.name).better,
        }
    return found


# ---------------------------------------------------------------------------------------------- results.csv

COLUMNS = ("contestant", "what", "at", "seed", "metric", "value", "n", "depends_on_machine")


def as_csv(outcome: Outcome) -> str:
    """One row a value: final ones, those on the way, those of the grid, costs and times, and those of a sweep."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in outcome.contestants:
        for cell, results in [*one.final, *one.course, *one.grid, *one.own]:
            at = "" if cell.at is None else f"{cell.at:g}"
            for entry in results.measurements:
                writer.writerow((one.name, cell.kind, at, cell.seed, entry.name, entry.value, entry.n, 0))
        for name, value in one.pooled.cost.items():
            writer.writerow((one.name, "cost", "", "", name, value, "", 0))
        for round_, value in enumerate(one.times.latency):
            writer.writerow((one.name, "times", round_, "", "latency_s", value, 1, 1))
        for batch, value in one.times.throughput.items():
            writer.writerow((one.name, "times", batch, "", "throughput_images_per_s", value, batch, 1))
        for steps, value in one.times.steps.items():
            writer.writerow((one.name, "times", steps, "", "latency_s_by_steps", value, 1, 1))
    for name, results in outcome.tokenizers.items():
        for entry in results.measurements:
            writer.writerow((name, "tokenizer", "", "", entry.name, entry.value, entry.n, 0))
    if outcome.sweep is not None:
        writer.writerows(_sweep_rows(outcome.sweep))
    return stream.getvalue()


def _sweep_rows(sweep: Findings) -> Iterator[tuple[object, ...]]:
    timed = {column.name: int(column.timed) for column in sweep.columns}
    for setting in sweep.outcomes:
        for record in setting.records:
            for name, value in record.values.items():
                yield setting.cell.name, "sweep", "", record.seed, name, value, "", timed.get(name, 0)
