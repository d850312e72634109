"""The results of a study: every entry with its seeds, written as results.json and, one row per value, results.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from artok import __version__
from artok.errors import ConfigError
from artok.evaluation.run_directory import Run, open_run
from artok.evaluation.statistics import Value
from artok.metrics.catalogue import describe
from artok.metrics.results import Results, side_by_side
from artok.studies.budget import TrainingCost, read_speeds, training_cost
from artok.studies.measure import (
    CacheKeys,
    Record,
    build_on_meta,
    list_records,
    list_tokenizers,
    read_positions,
    read_record,
    tokenizer_of,
    tokenizer_record,
)
from artok.studies.resolve import Entry, StudyPlan
from artok.studies.timing import SamplingTimes, read_times
from artok.training.health import Finding, diagnose
from artok.training.log import LOG, read_log
from artok.training.merged_log import log_interval, merge_resumed_log

FORMAT = 2  # of results.json
RESULTS, TABLE, PAGE = "results.json", "results.csv", "report.html"

Measured = list[tuple[Record, Results]]
Side = Literal["tokenizer", "generator"]


@dataclass(frozen=True)
class EntryResults:
    """The results of an entry. runs: of the generator by seed, without failed ones; empty for tokenizers. tokenizers:
    those with weights, by name.

    final: one per run. course, grid, own: further records, in their order. findings: problems in the log, by seed.
    training: its cost, None for finished runs.
    """

    entry: Entry
    runs: Mapping[int, Run]
    tokenizers: Mapping[str, Run]
    final: Measured
    course: Measured
    grid: Measured
    own: Measured
    findings: Mapping[int, list[Finding]]
    times: SamplingTimes | None
    training: TrainingCost | None

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def first(self) -> Run:
        """The generator's run of the first seed, or the tokenizer's run."""
        return next(iter((self.runs or self.tokenizers).values()))

    def value(self, metric: str, side: Side = "generator") -> Value | None:
        """Mean and spread of a metric or cost over the seeds; None when it was not measured."""
        runs = self.runs.values() if side == "generator" else self.tokenizers.values()
        found = [entry.value for run in runs if (entry := run.results.find(metric)) is not None]
        if found:
            return Value.of(found)
        exact = {run.results.cost[metric] for run in runs if metric in run.results.cost}
        if exact:
            return Value(exact.pop(), exact=True)
        if metric == "train_core_seconds":
            return core_seconds(list(runs))
        return self._generator_costs.get(metric) if side == "generator" else None

    @property
    def _generator_costs(self) -> dict[str, Value]:
        """The cost of training, and times on this machine."""
        found = {}
        if self.training is not None:
            found["images_trained"] = Value(self.training.images, exact=True)
            found["train_flops"] = Value(self.training.flops_per_image * self.training.images, exact=True)
        if self.times is not None:
            batch, throughput = self.times.best
            found |= {"latency_s": Value.of(self.times.latency), "throughput_images_per_s": Value(throughput)}
            found["best_batch"] = Value(batch, exact=True)
        return found

    @property
    def values(self) -> dict[str, Value]:
        """Mean and spread of every metric and cost of the generator."""
        names = [*(entry.name for entry in self.final[0][1].measurements), *self.table.cost]
        return {name: value for name in names if (value := self.value(name)) is not None}

    @property
    def passes(self) -> dict[int, int]:
        """Network passes by number of sampling steps, for the sampling grid."""
        config = self.first.saved.generator
        assert config is not None
        generator = build_on_meta(self.entry, config)
        steps = [record for record, _ in self.grid if record.kind == "steps"]
        return {int(record.at or 0): generator.passes(record.sampling) for record in steps}

    @property
    def tokens(self) -> int:
        """Number of tokens; several codes at a position count separately."""
        return self.entry.layout.length * self.entry.layout.codes

    @property
    def table(self) -> Results:
        """The mean results over all seeds, with all costs."""
        _, first = self.final[0]
        means = [replace(entry, value=value.mean) for entry in first.measurements if (value := self.value(entry.name))]
        costs: dict[str, float] = {"tokens_per_image": self.tokens, **first.cost}
        costs |= {name: value.mean for name, value in self._generator_costs.items()}
        if (seconds := self.value("train_core_seconds")) is not None:
            costs["train_core_seconds"] = seconds.mean
        return replace(first, name=self.name, measurements=tuple(means), cost=costs)


def core_seconds(runs: Sequence[Run]) -> Value | None:
    """Processor seconds of training over the seeds; None if the logs do not have them."""
    spent = [run.spent for run in runs if run.spent is not None]
    found = [each.core_seconds for each in spent if each.device == "cpu" and each.core_seconds]
    return Value.of(found) if found else None


@dataclass(frozen=True)
class Outcome:
    """The results of a study. tokenizers: every tokenizer's run and results, by name. code_entropy: bits of each
    position by tokenizer, if measured. beside: the results of the second study."""

    plan: StudyPlan
    entries: list[EntryResults]
    tokenizers: Mapping[str, Run]
    code_entropy: Mapping[str, list[list[float]]]
    beside: Outcome | None = None

    @property
    def generators(self) -> list[EntryResults]:
        return [one for one in self.entries if one.runs]


def gather(plan: StudyPlan, beside: Outcome | None = None) -> Outcome:
    """Read all results of a study. ArtokError: they cannot be compared with each other."""
    keys, times = CacheKeys(plan), read_times(plan)
    tokenizers, entropy = dict[str, Run](), dict[str, list[list[float]]]()
    for name in list_tokenizers(plan):
        record = tokenizer_record(plan, name)
        tokenizers[name] = _open(plan, record, _read(plan, record, keys))
        entropy[name] = read_positions(plan, record)
    speeds, entries = read_speeds(plan.study.budget, plan.folder), []
    for entry in plan.entries:
        found = [
            (record, _read(plan, record, keys))
            for record in list_records(plan, entry.name)
            if record.kind != "tokenizer"
        ]
        final = [pair for pair in found if pair[0].kind == "final"]
        if entry.runs and not final:
            continue
        entries.append(
            EntryResults(
                entry=entry,
                runs={record.seed: _open(plan, record, results) for record, results in final},
                tokenizers={name: tokenizers[name] for name in tokenizer_of(plan, entry).values()},
                final=final,
                course=[pair for pair in found if pair[0].kind == "images"],
                grid=[pair for pair in found if pair[0].kind in ("steps", "cfg_scale")],
                own=[pair for pair in found if pair[0].kind == "own"],
                findings=dict(_findings(entry)),
                times=times.get(entry.name),
                training=training_cost(plan, entry, speeds),
            )
        )
    outcome = Outcome(plan, entries, tokenizers, {name: bits for name, bits in entropy.items() if bits}, beside)
    if outcome.generators:
        side_by_side([one.table for one in outcome.generators])
    return outcome


def _open(plan: StudyPlan, record: Record, results: Results) -> Run:
    """Open a run. One that names no data gets the study's."""
    run = open_run(record.folder, record.owner, results)
    own = run.config if run.config.get("data") else {**run.config, "data": plan.data.model_dump(mode="json")}
    return replace(run, config=own)


def _read(plan: StudyPlan, record: Record, keys: CacheKeys) -> Results:
    results = read_record(plan, record, keys)
    if results is None:
        raise ConfigError(f"{record.place(plan.folder)} is missing or of other weights; run the study again")
    return results


def _findings(entry: Entry) -> Iterator[tuple[int, list[Finding]]]:
    """The findings of every seed that has a log."""
    for seed, folder in entry.runs.items():
        log = read_log(folder / LOG)
        if log:
            yield seed, diagnose(merge_resumed_log(log, log_interval(folder)))


# ---------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class ResultRow:
    """A value. entry: or the tokenizer, if several entries share it. seed, n: None if the value does not depend on
    them. point: `final`, `tokenizer`, `cost`, a setting such as `steps=4`, or `images=3200` during training."""

    entry: str
    seed: int | None
    point: str
    metric: str
    value: float
    n: int | None
    extractor: str | None
    unit: str
    depends_on_machine: bool = False


def rows(outcome: Outcome) -> Iterator[ResultRow]:
    users: dict[str, set[tuple[str, int]]] = {}
    for one in outcome.entries:
        for seed, name in tokenizer_of(outcome.plan, one.entry).items():
            users.setdefault(name, set()).add((one.name, seed))
    for name, run in outcome.tokenizers.items():
        owners, seeds = ({user[part] for user in users[name]} for part in (0, 1))
        owner = str(owners.pop()) if len(owners) == 1 else name
        only = int(seeds.pop()) if len(seeds) == 1 else None
        yield from _rows_of(owner, only, "tokenizer", run.results)
        yield from (_cost(owner, only, "tokenizer", metric, value) for metric, value in run.results.cost.items())
        if (seconds := core_seconds([run])) is not None:
            yield _cost(owner, only, "tokenizer", "train_core_seconds", seconds.mean, timed=True)
    for one in outcome.entries:
        for record, results in [*one.final, *one.course, *one.grid, *one.own]:
            point = record.kind if record.at is None else f"{record.kind}={record.at:g}"
            yield from _rows_of(one.name, record.seed, point, results)
        if one.final:
            costs = {"tokens_per_image": one.tokens, **one.final[0][1].cost}
            yield from (_cost(one.name, None, "cost", metric, value) for metric, value in costs.items())
        if one.training is not None:
            yield _cost(one.name, None, "cost", "images_trained", one.training.images)
            yield _cost(one.name, None, "cost", "train_flops", one.training.flops_per_image * one.training.images)
        for seed, run in one.runs.items():
            if (seconds := core_seconds([run])) is not None:
                yield _cost(one.name, seed, "cost", "train_core_seconds", seconds.mean, timed=True)
        if one.times is not None:
            for index, value in enumerate(one.times.latency):
                yield _cost(one.name, None, f"round={index}", "latency_s", value, timed=True)
            for batch, value in one.times.throughput.items():
                yield _cost(one.name, None, f"batch={batch}", "throughput_images_per_s", value, timed=True)
            for steps, value in one.times.steps.items():
                yield _cost(one.name, None, f"steps={steps}", "latency_s", value, timed=True)


def _rows_of(name: str, seed: int | None, point: str, results: Results) -> Iterator[ResultRow]:
    for each in results.measurements:
        unit = describe(each.name).unit
        yield ResultRow(name, seed, point, each.name, each.value, each.n, each.extractor, unit)


def _cost(name: str, seed: int | None, point: str, metric: str, value: float, timed: bool = False) -> ResultRow:
    return ResultRow(name, seed, point, metric, value, None, None, describe(metric).unit, timed)


def as_csv(outcome: Outcome) -> str:
    """One line per value, with those of the second study."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(field.name for field in fields(ResultRow))
    for each in [outcome, *([outcome.beside] if outcome.beside else [])]:
        for row in rows(each):
            plain = asdict(row) | {"depends_on_machine": int(row.depends_on_machine)}
            writer.writerow("" if value is None else value for value in plain.values())
    return stream.getvalue()


def as_json(outcome: Outcome, tradeoffs: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values. Values that depend on the machine and its load are under `times`, at any depth.

    tradeoffs: fronts and dominated settings of a grid.
    """
    study, values = outcome.plan.study, list(rows(outcome))
    some = next(run.results for run in (outcome.entries[0].first,))
    entry = next(each for each in some.measurements if each.dim is not None)
    return {
        "format": FORMAT,
        "artok": __version__,
        "study": study.name,
        "budget": study.budget.model_dump(mode="json") if study.budget else None,
        "seeds": list(study.seeds),
        "extractor": {"name": study.evaluation.extractor, "fingerprint": entry.fingerprint},
        "n": entry.n,
        "floors": {each.name: each.floor for each in some.measurements if each.floor is not None},
        "entries": {each.name: _entry(outcome, each) for each in outcome.entries},
        "measurements": [_plain(row) for row in values if not row.depends_on_machine],
        "times": [_plain(row) for row in values if row.depends_on_machine],
        "code_entropy_bits": dict(outcome.code_entropy),
        "skipped": [{"labels": dict(point.labels), "reason": reason} for point, reason in outcome.plan.skipped],
        **tradeoffs,
    }


def _plain(row: ResultRow) -> dict[str, Any]:
    """A row without its defaults."""
    return {key: value for key, value in asdict(row).items() if value is not None and key != "depends_on_machine"}


def _entry(outcome: Outcome, one: EntryResults) -> dict[str, Any]:
    return {
        "labels": dict(one.entry.labels),
        "adjustment": one.entry.adjustment,
        "given": one.entry.given,
        "tokenizers": {str(seed): name for seed, name in tokenizer_of(outcome.plan, one.entry).items()},
        "layout": one.entry.layout.to_dict(),
        "parameters": one.training.parameters if one.training else None,
        "images": one.training.images if one.training else None,
        "health": {str(seed): [asdict(finding) for finding in found] for seed, found in one.findings.items()},
        "times": {"speed": one.training.speed if one.training else None},
    }
