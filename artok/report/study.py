"""The page of a study: pictures, headline table, decision guide, trade-offs, and what a grid of settings adds."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artok.config import dump
from artok.data.base import DataConfig
from artok.evaluation.statistics import ALPHA, format_mean
from artok.metrics.catalogue import describe
from artok.metrics.quantity import number
from artok.report import images as gallery
from artok.report import study_plots
from artok.report.clips import clips_part
from artok.report.data_uris import Picture, strip
from artok.report.decision_guide import Choice, candidate, guide
from artok.report.grid_images import sample_strip
from artok.report.grid_part import grid_part
from artok.report.headline_table import headline_table
from artok.report.images import RealImages, one_each
from artok.report.plots.learning_curves import learning_curves
from artok.report.prompts import prompts_part
from artok.report.provenance import config_text
from artok.report.run import TokenizerPart, cost, facts, generator_part, real_parts, template, tokenizer_part
from artok.report.tables import Figures, figures
from artok.report.text import BROKEN, joined
from artok.saved import write_text
from artok.studies.budget import UNITS
from artok.studies.config import Budget
from artok.studies.results import EntryResults, Outcome
from artok.training.merged_log import log_interval, merge_resumed_log

TEMPLATE = "study.html.jinja"


@dataclass(frozen=True)
class TrainingRow:
    """How an entry was made. adjustment: to meet the budget. status: by the rules of health."""

    name: str
    adjustment: str
    images: str
    parameters: str
    flops: str
    seconds: str
    status: str


def write_page(path: Path, outcome: Outcome, device: str) -> Path:
    """Write the page of a study to `path`, and return it."""
    write_text(path, render(outcome, device))
    return path


def render(outcome: Outcome, device: str) -> str:
    """The page's HTML."""
    study, known, generators = outcome.plan.study, RealImages(), outcome.generators
    named = [] if study.grid else generators  # the points of a grid have pictures of their own
    side = gallery.SIDE if len(named) < 2 else gallery.NARROW
    prompts = prompts_part(outcome, device) if named else None
    parts = [generator_part(replace(one.first, results=one.table), known, side, device) for one in named]
    beside = outcome.beside
    return template(TEMPLATE).render(
        title=study.title or f"Study {study.name}",
        intro=study.intro or f"{len(outcome.entries)} entries, one evaluator, {', '.join(_scope(outcome))}.",
        scope=_scope(outcome),
        prompts=prompts,
        opening=list(opening(outcome, known, device)) if named and prompts is None else [],
        hedges=list(hedges(outcome)),
        headline=headline_table(generators) if generators else None,
        choices=choices_of(generators, study.budget) if len(generators) > 1 else [],
        plots=study_plots.plots(named) if named else [],
        fewer=fewer(outcome),
        tokenizers=[] if study.grid else tokenizer_parts(outcome, known, device),
        groups=real_parts(parts, side),
        seed=gallery.SEED,
        clips=clips_part([(one.entry.title, one.first, one.final[0][1]) for one in named], outcome.plan.data, device),
        grid=grid_part(outcome, device) if study.grid else None,
        beside=grid_part(beside, device, beside=True) if beside and beside.plan.study.grid else None,
        beside_study=beside.plan.study if beside else None,
        curves=curves(named),
        trained=[describe_training(one) for one in generators],
        findings=[text for one in generators for text in findings(one)],
        alarms={one.entry.title: text for one in generators if (text := alarm(one))},
        tables=[] if study.grid else list(tables(outcome)),
        facts=facts([run for one in outcome.entries for run in (one.runs or one.tokenizers).values()])
        | budget_facts(outcome),
        command=f"artok compare study.yaml --out {shlex.quote(str(outcome.plan.folder))}",
        yaml=dump(study),
        beside_yaml=dump(beside.plan.study) if beside else "",
        configs=[(one.entry.title, text) for one in named if (text := config_text(one.first))],
    )


def opening(outcome: Outcome, known: RealImages, device: str) -> Iterator[tuple[str, Picture]]:
    """An image of each class: held out, then by each entry."""
    real = known.of(outcome.plan.data)
    images, names = one_each(real)
    yield "held-out images", strip(images, f"Held-out images of {', '.join(names)}", gallery.NARROW)
    for one in outcome.generators:
        yield one.entry.title, sample_strip(one.first, real, one.entry.title, device)


def _scope(outcome: Outcome) -> list[str]:
    """What the figures rest on: data, seeds, images measured, budget."""
    study, data = outcome.plan.study, outcome.plan.data
    seeds = len(study.seeds)
    n = max(entry.n for entry in outcome.entries[0].first.results.measurements if entry.dim)
    found = [f"{data_text(data)} at {data.size}x{data.size}", f"{seeds} seed{'s' if seeds > 1 else ''}"]
    found.append(f"{n:,} images measured per entry")
    return found + (
        [budget_text(study.budget)] if study.budget and any(one.training for one in outcome.entries) else []
    )


def data_text(data: DataConfig) -> str:
    """What the images are called: those of the hub by the last part of their name, whether copies are read or not."""
    own = getattr(data, "local", None) or (None if getattr(data, "files", None) else getattr(data, "path", None))
    return Path(own or data.kind).name


def budget_text(budget: Budget) -> str:
    amount = f"{number(budget.amount)} {UNITS[budget.kind]}"
    if budget.kind == "flops" and budget.amount >= 1e11:
        amount = f"{number(budget.amount / 1e12)} TFLOPs of training"
    return f"{amount} per generator, within {budget.tolerance:.0%}"


def hedges(outcome: Outcome) -> Iterator[str]:
    """What a reader should know before trusting the figures."""
    study = outcome.plan.study
    seeds = len(study.seeds)
    if seeds > 1:
        yield (
            f"± is the standard deviation over {seeds} seeds. Two means are called different where seeds alone would "
            f"set any pair of all those compared so far apart less than {ALPHA:.0%} of the time (Tukey's HSD)."
        )
        if not study.tokenizer_seeds and outcome.plan.tokenizers:
            yield "All seeds share one tokenizer: the spread is that of generators and samples."
    else:
        yield "With one seed the noise is not known: no two means are called different."
    found = [entry for one in outcome.generators for entry in one.final[0][1].measurements]
    yield from dict.fromkeys(f"{entry.title}: {entry.note}." for entry in found if entry.note)


def fewer(outcome: Outcome) -> str:
    """That the plots show distances of fewer images than the figures, where they do."""
    others = {r.measurements[0].n for one in outcome.generators for _, r in [*one.grid, *one.course, *one.own]}
    n = outcome.entries[0].first.results.measurements[0].n
    if not others or others == {n}:
        return ""
    counts = " or ".join(f"{count:,}" for count in sorted(others))
    return (
        f"The plots are measured on {counts} images, the figures of the tables on {n:,}: the fewer, the larger every "
        "Fréchet distance, so compare within a plot."
    )


def choices_of(entries: Sequence[EntryResults], budget: Budget | None) -> list[Choice]:
    distance = entries[0].final[0][1]["fd"].title
    return guide([candidate(one) for one in entries], budget.kind if budget else None, distance)


def tokenizer_parts(outcome: Outcome, known: RealImages, device: str) -> list[TokenizerPart]:
    """Each tokenizer, on the images of the study."""
    data = outcome.plan.data.model_dump(mode="json")
    runs = [replace(run, config={**run.config, "data": data}) for run in outcome.tokenizers.values()]
    return [tokenizer_part(run, known, device) for run in runs]


def curves(entries: Sequence[EntryResults]) -> list[Picture]:
    """Learning curves, a colour per entry and a line per seed."""
    return learning_curves(
        [
            (one.name, merge_resumed_log(run.log, log_interval(folder)) if run.log else [])
            for one in entries
            for folder, run in {run.folder: run for run in one.runs.values()}.items()
        ]
    )


def describe_training(one: EntryResults) -> TrainingRow:
    training, seconds = one.training, one.value("train_core_seconds")
    return TrainingRow(
        name=one.entry.title,
        adjustment=one.entry.adjustment,
        images=f"{training.images:,}" if training else "",
        parameters=f"{one.table.cost['parameters']:,.0f}",
        flops=f"{training.flops_per_image * training.images / 1e12:.3g}" if training else "",
        seconds=format_mean(seconds, describe("train_core_seconds")) if seconds else cost(one.first),
        status=training_status(one),
    )


def training_status(one: EntryResults) -> str:
    """healthy, or how many of the runs were not, and what they were."""
    if not one.findings:
        return "trained elsewhere"
    counts = Counter(finding.kind for found in one.findings.values() for finding in found)
    return ", ".join(f"{count} of {len(one.findings)} {kind}" for kind, count in counts.items()) or "healthy"


def findings(one: EntryResults) -> Iterator[str]:
    """What is wrong with each run, with the rule that says so."""
    for seed, found in one.findings.items():
        for finding in found:
            yield f"{one.entry.title}, seed {seed}: {finding.kind} from {finding.since:,} images on: {finding.text}."


def alarm(one: EntryResults) -> str:
    """What must stand beside every figure: that runs broke, and how."""
    kinds = {finding.kind for found in one.findings.values() for finding in found} & set(BROKEN)
    return joined(sorted(kinds))


def tables(outcome: Outcome) -> Iterator[tuple[str, Figures]]:
    """The generators' figures with their spread, then the tokenizers'."""
    generators = outcome.generators
    if generators:
        same = len({one.first.saved.facts.tokenizer for one in generators}) == 1
        yield "Generators", figures([one.table for one in generators], same, [one.values for one in generators])
    if outcome.tokenizers:
        yield "Tokenizers", figures([run.results for run in outcome.tokenizers.values()])


def budget_facts(outcome: Outcome) -> dict[str, str]:
    """The budget, and for one of seconds the speeds that repeat the study."""
    budget = outcome.plan.study.budget
    if budget is None:
        return {"budget": "none: each as its config says"}
    known = {"budget": budget_text(budget)}
    speeds = {one.name: one.training.speed for one in outcome.entries if one.training and one.training.speed}
    if budget.kind == "seconds" and speeds:
        text = ", ".join(f"{name}: {speed:.6g}" for name, speed in speeds.items())
        known["to repeat it"] = f"budget.speeds={{{text}}} (images per second, as measured)"
    return known
