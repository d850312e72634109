"""What a study's figures say, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from artok.data.base import DataConfig
from artok.evaluation.statistics import Value
from artok.metrics.quantity import number
from artok.report import text as summary
from artok.report.decision_guide import Candidate, Choice
from artok.report.text import BROKEN, joined
from artok.studies.budget import UNITS
from artok.studies.config import Budget, Study
from artok.studies.results import Contestant, Outcome


def paragraphs(outcome: Outcome, choices: Sequence[Choice]) -> list[str]:
    """What was done and who came out first, then a paragraph on each contestant."""
    study = outcome.plan.study
    names = [one.name for one in outcome.contestants]
    trained = [one for one in outcome.contestants if not one.entry.given]
    first = outcome.contestants[0].final[0][1]
    n = max(entry.n for entry in first.measurements if entry.dim)
    texts = [
        f"{joined(names)} {'are' if len(names) > 1 else 'is'} compared on {data_text(outcome.plan.data)} images of "
        f"{outcome.plan.data.size} by {outcome.plan.data.size} pixels, {seeds_text(study)}, by {n:,} samples each."
    ]
    if study.budget and trained:
        texts[0] += f" {budget_text(study.budget)}"
    if len(names) > 1:
        texts.append(f"{choices[0].text} {_constraints(choices)}".rstrip())
    return texts


def data_text(data: DataConfig) -> str:
    """What the images are called: those of the hub by the last part of their name, whether copies are read or not."""
    own = getattr(data, "local", None) or (None if getattr(data, "files", None) else getattr(data, "path", None))
    return Path(own or data.kind).name


def seeds_text(study: Study) -> str:
    count = len(study.seeds)
    return f"with {count} seeds" if count > 1 else "with one seed"


def budget_text(budget: Budget) -> str:
    amount = f"{number(budget.amount)} {UNITS[budget.kind]}"
    if budget.kind == "flops" and budget.amount >= 1e11:
        amount = f"{number(budget.amount / 1e12)} TFLOPs of training"
    how = "Their sizes were changed" if budget.kind == "parameters" else "Their training was cut or prolonged"
    return f"{how} to meet one budget, {amount} within {budget.tolerance:.0%}; tokenizers are not part of it."


def _constraints(choices: Sequence[Choice]) -> str:
    """One sentence on the constraints that one contestant wins alone."""
    alone: dict[str, list[str]] = {}
    for choice in choices[1:]:
        if len(choice.winners) == 1:
            alone.setdefault(choice.winners[0], []).append(choice.question.partition(":")[0].lower())
    parts = [f"{name} where it is {_either(questions)}" for name, questions in alone.items()]
    return f"Under one constraint the choice is {joined(parts)}." if parts else ""


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def about(one: Contestant) -> str:
    """A paragraph on one contestant, its means, then how training went."""
    run = replace(one.first, results=one.pooled)
    return " ".join([summary.about_generator(run), *_spread(one), *_health(one)])


def _spread(one: Contestant) -> Iterator[str]:
    value = one.value("fd")
    if value is not None and value.seeds > 1:
        what = "sampling seeds of the same weights" if len(set(one.entry.runs.values())) == 1 else "seeds"
        low, high = _range(one)
        yield f"Over {value.seeds} {what} {one.distance} runs from {low:.3g} to {high:.3g}."


def _range(one: Contestant) -> tuple[float, float]:
    values = [entry.value for _, results in one.final for entry in results.measurements if entry.name == "fd"]
    return min(values), max(values)


def _health(one: Contestant) -> Iterator[str]:
    """What went wrong with the seeds beyond the first, whose own paragraph says it."""
    for seed, found in one.findings.items():
        if seed not in one.runs:
            yield f"Seed {seed} diverged and is left out."
        elif found and one.runs[seed] is not one.first:
            yield f"Seed {seed}: {joined([finding.kind for finding in found])}."


def hedges(outcome: Outcome) -> list[str]:
    """What a reader should know before trusting the figures."""
    seeds = len(outcome.plan.study.seeds)
    if seeds > 1:
        first = (
            f"± is the standard deviation over {seeds} seeds. A difference counts where seeds alone would make one as "
            "large, among all pairs, less than 5% of the time (Tukey's HSD)."
        )
    else:
        first = "With one seed each nothing is known of the noise: differences of a few percent may be chance."
    texts = [first]
    if not outcome.plan.study.tokenizer_seeds and seeds > 1 and outcome.plan.tokenizers:
        texts.append("All seeds share one tokenizer: the spread is that of generators and samples.")
    found = [entry for one in outcome.contestants for entry in one.final[0][1].measurements]
    return texts + list(dict.fromkeys(f"{entry.title}: {entry.note}." for entry in found if entry.note))


def fewer(outcome: Outcome) -> str:
    """That the plots show distances of fewer images than the figures, where they do."""
    measured_on = {
        results.measurements[0].n for one in outcome.contestants for _, results in [*one.grid, *one.course, *one.own]
    }
    n = outcome.contestants[0].final[0][1].measurements[0].n
    if not measured_on or measured_on == {n}:
        return ""
    counts = " or ".join(f"{count:,}" for count in sorted(measured_on))
    return (
        f"The plots are measured on {counts} images, the figures of the tables on {n:,}: the fewer, the larger every "
        "Fréchet distance, so compare within a plot."
    )


# ---------------------------------------------------------------------------------------------- for the guide


def candidates(contestants: Sequence[Contestant]) -> list[Candidate]:
    return [candidate(one) for one in contestants]


def candidate(one: Contestant) -> Candidate:
    """A contestant as the guide sees it."""
    quality = one.value("fd")
    assert quality is not None
    known: dict[str, Value | None] = {
        "latency_s": one.latency,
        "tokens_per_image": Value(one.tokens, exact=True),
        "peak_memory_bytes_per_image": Value(one.pooled.cost["peak_memory_bytes_per_image"], exact=True),
        "recall": one.value("recall"),
        "class_consistency": one.value("class_consistency"),
        "memorised_share": _copies(one),
    }
    if one.meter is not None:
        known["train_flops"] = Value(one.meter.flops_an_image * one.meter.images, exact=True)
    values = {key: value for key, value in known.items() if value is not None}
    return Candidate(one.name, quality, values, dict(_options(one)), broken(one))


def broken(one: Contestant) -> str:
    """What most of its runs suffer from, of what no figure can be read without; empty for a sound contestant."""
    kinds = Counter(kind for found in one.findings.values() for kind in {each.kind for each in found} & set(BROKEN))
    return joined([kind for kind, count in kinds.items() if count > len(one.findings) / 2])


def _copies(one: Contestant) -> Value | None:
    """The share of memorised samples, by seed; none where chance shows as many."""
    found = [results.find("memorised_share") for _, results in one.final]
    shares = [entry.value if entry.value > (entry.floor or 0) else 0.0 for entry in found if entry is not None]
    return Value.of(shares) if shares else None


def _options(one: Contestant) -> Iterator[tuple[str, tuple[float, float]]]:
    """Latency and distance by number of steps, where they were measured on as many images as the final figures."""
    n = one.final[0][1].measurements[0].n
    for cell, results in one.grid:
        entry = results.find("fd")
        if cell.kind == "steps" and cell.at and entry is not None and entry.n == n and int(cell.at) in one.times.steps:
            yield f"{cell.at:g} steps", (one.times.steps[int(cell.at)], entry.value)
