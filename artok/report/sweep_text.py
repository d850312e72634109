"""What a sweep found, in words generated from its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from artok.evaluation.statistics import Comparison
from artok.metrics.quantity import number
from artok.report.text import joined
from artok.studies.grid import Axis, Sweep
from artok.studies.grid_columns import (
    BITS,
    IMAGES,
    PSNR,
    RATE,
    TOKENS,
    USAGE,
    Column,
    distances,
    perturbed_distance,
    reconstruction_distance,
)
from artok.studies.grid_results import Findings, Outcome

UNUSED = 0.5  # with a smaller share of its codes in use, a codebook is larger than it needs to be


def paragraphs(findings: Findings, measured: int) -> list[str]:
    """The summary. measured: images that the tokenizers were measured on."""
    rules = (_what, _best, _axes, _robustness, partial(_unused, measured=measured), _dominated)
    return [text for text in (" ".join(rule(findings)) for rule in rules) if text]


def short(value: float) -> str:
    return number(float(f"{value:.3g}")) if abs(value) < 1000 else number(round(value))


def _known(findings: Findings, column: Column) -> dict[str, float]:
    """The column's mean of each cell that has it, by name."""
    return {
        outcome.cell.name: outcome.values[column.name].mean
        for outcome in findings.outcomes
        if column.name in outcome.values
    }


def _what(findings: Findings) -> Iterator[str]:
    study = findings.planned.study
    axes = [f"{axis.name} {', '.join(entry.label for entry in axis.entries)}" for axis in findings.planned.axes]
    seeds = "one seed each" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds each, figures are their means"
    yield f"{len(findings.outcomes)} settings of {study.tokenizer}: {' by '.join(axes)}; {seeds}."
    if study.generator is None:
        return
    images = _known(findings, IMAGES)
    low, high = min(images.values()), max(images.values())
    seen = f"{low:,.0f} images" if low == high else f"{low:,.0f} to {high:,.0f} images"
    yield f"On the tokens of each, {study.generator} is trained with {budget_text(study)}: {seen}."


def budget_text(study: Sweep) -> str:
    """The budget of a generator, in words."""
    if study.budget is None:
        return "the images of its config"
    if study.budget.kind == "images":
        return "the same number of images"
    return f"the same {study.budget.amount / 1e12:.4g} TFLOPs"


def _best(findings: Findings) -> Iterator[str]:
    lost, made = distances(findings.planned.study.evaluation.extractor)
    rebuilt, sampled = _known(findings, lost), _known(findings, made)
    if not rebuilt:
        return
    best = findings.outcome(min(rebuilt, key=lambda name: rebuilt[name]))
    yield f"Images come back best from {best.cell.title}: {_figures(best, (lost, PSNR, TOKENS, BITS))}."
    if not sampled:
        return
    ranked = sorted(sampled, key=lambda name: sampled[name])
    first = findings.outcome(ranked[0])
    if first is best:
        yield f"New images are best there too: {_figures(first, (made,))}."
        return
    yield f"New images are best from {first.cell.title}: {_figures(first, (made, lost, TOKENS, BITS))};"
    place = ranked.index(best.cell.name) + 1 if best.cell.name in ranked else 0
    yield (
        f"the tokenizer that keeps most of an image comes {_ordinal(place)} of {len(ranked)} once a generator has to "
        f"model its tokens ({short(sampled[best.cell.name])})."
    )
    if len(ranked) > 1 and _within_noise(findings, made, ranked[0], ranked[1]):
        yield f"The lead over {findings.outcome(ranked[1]).cell.title} is within the noise of the seeds."


def _within_noise(findings: Findings, column: Column, one: str, other: str) -> bool:
    values = {each.cell.name: each.values[column.name] for each in findings.outcomes if column.name in each.values}
    assert column.better in ("higher", "lower")
    return Comparison(values, column.better).differ(one, other) is False


def _figures(outcome: Outcome, wanted: Sequence[Column]) -> str:
    texts = []
    for column in wanted:
        value = outcome.values.get(column.name)
        if value is not None:
            text = column.quantity.format(value.mean, digits=3, unit=True)
            texts.append(f"{text} {column.label}" if column in (TOKENS, BITS) else f"{column.label} {text}")
    return ", ".join(texts)


def _ordinal(place: int) -> str:
    ending = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"


def _axes(findings: Findings) -> Iterator[str]:
    """What an axis does from its first entry to its last, over cells that differ in nothing else."""
    lost, made = distances(findings.planned.study.evaluation.extractor)
    for axis in findings.planned.axes:
        if len(axis.entries) < 2:
            continue
        texts = []
        for column in (lost, made, RATE):
            factor = _factor(findings, axis, column)
            if factor is not None:
                texts.append(f"{column.label} {_times(factor)}")
        if texts:
            first, last = axis.entries[0].label, axis.entries[-1].label
            yield f"From {axis.name} {first} to {last}, all else equal, {joined(texts)} (geometric means)."


def _factor(findings: Findings, axis: Axis, column: Column) -> float | None:
    """The geometric mean of the last entry's value over the first's; None where no pair has both."""
    by_labels = {tuple(outcome.cell.labels.items()): outcome for outcome in findings.outcomes}
    logarithms = []
    for outcome in findings.outcomes:
        if outcome.cell.labels[axis.name] != axis.entries[0].label:
            continue
        other: Mapping[str, str] = {**outcome.cell.labels, axis.name: axis.entries[-1].label}
        partner = by_labels.get(tuple(other.items()))
        if partner is None or column.name not in outcome.values or column.name not in partner.values:
            continue
        one, two = outcome.values[column.name].mean, partner.values[column.name].mean
        if one > 0 and two > 0:
            logarithms.append(math.log(two / one))
    return math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None


def _times(factor: float) -> str:
    if 0.95 < factor < 1.05:
        return "stays as it is"
    return f"grows {factor:.3g} times" if factor > 1 else f"falls to {factor:.2g} of it"


def _robustness(findings: Findings) -> Iterator[str]:
    study = findings.planned.study
    share = study.robustness.shares[0] if study.robustness.shares else None
    if share is None:
        return
    plain = _known(findings, reconstruction_distance(study.evaluation.extractor))
    changed = _known(findings, perturbed_distance(study.evaluation.extractor, share))
    factors = {name: changed[name] / plain[name] for name in changed if plain.get(name, 0) > 0}
    if len(factors) < 2:
        return
    least, most = min(factors, key=lambda name: factors[name]), max(factors, key=lambda name: factors[name])

    def rise(name: str) -> str:
        change = f"{factors[name] - 1:+.1%}".replace("-", "−")
        return f"{findings.outcome(name).cell.title} ({change}, from {short(plain[name])} to {short(changed[name])})"

    yield (
        f"With {100 * share:.3g}% of the codes replaced by near neighbours, the distance of reconstructions grows "
        f"most, in proportion, for {rise(most)} and least for {rise(least)}."
    )


def _unused(findings: Findings, measured: int) -> Iterator[str]:
    idle = []
    for outcome in findings.outcomes:
        layout, used = outcome.cell.layout, outcome.values.get(USAGE.name)
        if used is None or layout.vocab is None:
            continue
        could = min(1.0, measured * layout.length / layout.vocab)  # few tokens cannot use many codes
        if used.mean < UNUSED * could:
            idle.append(outcome.cell.title)
    if idle:
        yield f"Held-out images use less than half of the codes that they could of {joined(idle)}."


def _dominated(findings: Findings) -> Iterator[str]:
    measured = joined([column.label for column in findings.objectives])
    if not findings.dominated:
        yield f"No setting is beaten by another in all of {measured}: each is the choice for some purpose."
        return
    names = [findings.outcome(each.name).cell.title for each in findings.dominated]
    yield (
        f"Nobody should choose {joined(names)}: for each another setting is no worse in {measured} and better in some."
    )


def hedges(findings: Findings) -> list[str]:
    """What a reader should know before trusting the figures."""
    seeds = len(findings.planned.study.seeds)
    if seeds == 1:
        return [
            "Every figure comes from one seed: differences of a few percent are within what another seed would give, "
            "and fronts and verdicts take them at face value."
        ]
    return [f"± is the standard deviation over {seeds} seeds."]
