"""The page of a comparison: summary, decision guide, trade-offs, pictures side by side, figures with their spread."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artok.config import dump
from artok.evaluation.run_directory import open_run
from artok.evaluation.statistics import Value, format_mean
from artok.metrics.catalogue import describe
from artok.report import images as gallery
from artok.report import study_plots
from artok.report import study_text as compare_summary
from artok.report.data_uris import Picture
from artok.report.decision_guide import Choice, guide
from artok.report.headline_table import glance
from artok.report.images import RealImages
from artok.report.plots.learning_curves import learning_curves
from artok.report.provenance import config_text
from artok.report.run import (
    TokenizerPart,
    cost,
    facts,
    generator_part,
    real_parts,
    template,
    tokenizer_part,
)
from artok.report.sweep import part
from artok.report.tables import Figures, figures
from artok.report.text import BROKEN, joined
from artok.saved import write_text
from artok.studies.results import Contestant, Outcome
from artok.training.merged_log import log_interval, merge_resumed_log

TEMPLATE = "compare.html.jinja"


@dataclass(frozen=True)
class Trained:
    """How a contestant was made. did: to meet the budget. went: by the rules of health."""

    name: str
    did: str
    images: str
    parameters: str
    flops: str
    seconds: str
    went: str


def write_page(path: Path, outcome: Outcome, device: str) -> Path:
    """Write the page of a study to `path`, and return it."""
    write_text(path, render(outcome, device))
    return path


def render(outcome: Outcome, device: str) -> str:
    """The page's HTML."""
    study, known = outcome.plan.study, RealImages()
    contestants = outcome.contestants
    choices = choices_of(outcome)
    side = gallery.SIDE if len(contestants) < 2 else gallery.NARROW
    parts = [generator_part(replace(one.first, results=one.table), known, side, device) for one in contestants]
    return template(TEMPLATE).render(
        title=study.title or f"Study {study.name}",
        intro=study.intro or f"{len(contestants)} contestants, one evaluator, {compare_summary.seeds_text(study)}.",
        summary=compare_summary.paragraphs(outcome, choices),
        about=[(one.name, compare_summary.about(one)) for one in contestants],
        hedges=compare_summary.hedges(outcome),
        glance=glance(contestants),
        choices=choices,
        plots=study_plots.plots(contestants),
        fewer=compare_summary.fewer(outcome),
        tokenizers=tokenizer_parts(outcome, known, device),
        groups=real_parts(parts, side),
        seed=gallery.SEED,
        curves=curves(contestants),
        sweep=part(outcome.sweep, device, brief=True) if outcome.sweep else None,
        trained=[trained(one) for one in contestants],
        findings=[text for one in contestants for text in findings(one)],
        alarms={one.name: text for one in contestants if (text := alarm(one))},
        tables=tables(outcome),
        facts=facts([run for one in contestants for run in one.runs.values()]) | budget_facts(outcome),
        command=f"artok compare study.yaml --out {shlex.quote(str(outcome.plan.folder))}",
        yaml=dump(study),
        configs=[(one.name, text) for one in contestants if (text := config_text(one.first))],
    )


def choices_of(outcome: Outcome) -> list[Choice]:
    budget = outcome.plan.study.budget
    contestants = outcome.contestants
    return guide(compare_summary.candidates(contestants), budget.kind if budget else None, contestants[0].distance)


def tokenizer_parts(outcome: Outcome, known: RealImages, device: str) -> list[TokenizerPart]:
    """Each tokenizer, on the images of the study."""
    parts = []
    for name, results in outcome.tokenizers.items():
        run = open_run(outcome.folders[name], name, results)
        run = replace(run, config={**run.config, "data": outcome.plan.data.model_dump(mode="json")})
        parts.append(tokenizer_part(run, known, device))
    return parts


def curves(contestants: Sequence[Contestant]) -> list[Picture]:
    """Learning curves, a colour a contestant and a line a seed."""
    return learning_curves(
        [
            (one.name, merge_resumed_log(run.log, log_interval(folder)) if run.log else [])
            for one in contestants
            for folder, run in {run.folder: run for run in one.runs.values()}.items()
        ]
    )


def trained(one: Contestant) -> Trained:
    meter = one.meter
    core = one.core_seconds
    return Trained(
        name=one.name,
        did=one.entry.did,
        images=f"{meter.images:,}" if meter else "",
        parameters=f"{one.pooled.cost['parameters']:,.0f}",
        flops=f"{meter.flops_an_image * meter.images / 1e12:.3g}" if meter else "",
        seconds=format_mean(core, describe("train_core_seconds")) if core else cost(one.first),
        went=went(one),
    )


def went(one: Contestant) -> str:
    """healthy, or how many of the runs were not, and what they were."""
    if not one.findings:
        return "trained elsewhere"
    counts = Counter(finding.kind for found in one.findings.values() for finding in found)
    return ", ".join(f"{count} of {len(one.findings)} {kind}" for kind, count in counts.items()) or "healthy"


def findings(one: Contestant) -> Iterator[str]:
    """What is wrong with each run, with the rule that says so."""
    for seed, found in one.findings.items():
        for finding in found:
            yield f"{one.name}, seed {seed}: {finding.kind} from {finding.since:,} images on: {finding.text}."


def alarm(one: Contestant) -> str:
    """What must stand beside every figure: that runs broke, and how."""
    kinds = {finding.kind for found in one.findings.values() for finding in found} & set(BROKEN)
    return joined(sorted(kinds))


def tables(outcome: Outcome) -> list[tuple[str, Figures]]:
    """The generators' figures with their spread, then the tokenizers'."""
    contestants = outcome.contestants
    same = len({one.first.saved.facts.tokenizer for one in contestants}) == 1
    values = [{**one.values, "latency_s": one.latency, **_core_seconds(one)} for one in contestants]
    found = [("Generators", figures([one.table for one in contestants], same, values))]
    if outcome.tokenizers:
        found.append(("Tokenizers", figures([replace(r, name=name) for name, r in outcome.tokenizers.items()])))
    return found


def _core_seconds(one: Contestant) -> dict[str, Value]:
    return {"train_core_seconds": one.core_seconds} if one.core_seconds else {}


def budget_facts(outcome: Outcome) -> dict[str, str]:
    """The budget, and for one of seconds the speeds that repeat the study."""
    budget = outcome.plan.study.budget
    if budget is None:
        return {"budget": "none: each as its config says"}
    known = {"budget": compare_summary.budget_text(budget)}
    speeds = {one.name: one.meter.speed for one in outcome.contestants if one.meter and one.meter.speed}
    if budget.kind == "seconds" and speeds:
        text = ", ".join(f"{name}: {speed:.6g}" for name, speed in speeds.items())
        known["to repeat it"] = f"budget.speeds={{{text}}} (images a second, as measured)"
    return known
