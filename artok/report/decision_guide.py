"""The decision guide: under one constraint, which entry to take, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from artok.evaluation.statistics import Comparison, Value, format_mean
from artok.metrics.catalogue import describe
from artok.metrics.quantity import Quantity, number
from artok.report.text import BROKEN, LEANING, joined
from artok.studies.results import EntryResults

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Candidate:
    """An entry as the guide sees it; what is missing in `values` was not measured.

    quality: Fréchet distance. values: of constraints, by their identifiers below. options: latency in seconds and
    distance of other sampling settings, by what they are called. broken: what its training logs say is wrong.
    """

    name: str
    quality: Value
    values: Mapping[str, Value]
    options: Mapping[str, tuple[float, float]]
    broken: str = ""


@dataclass(frozen=True)
class Constraint:
    """name: of the quantity that is compared. question: what cannot move."""

    name: str
    question: str

    @property
    def quantity(self) -> Quantity:
        return describe(self.name)

    @property
    def better(self) -> Better:
        return "higher" if self.quantity.better == "higher" else "lower"


CONSTRAINTS = (
    Constraint("latency_s", "Latency: one image, as soon as possible"),
    Constraint("tokens_per_image", "Tokens: a short sequence"),
    Constraint("peak_memory_bytes_per_image", "Memory: many images at a time"),
    Constraint("recall", "Diversity: all kinds of images"),
    Constraint("class_consistency", "Condition: the class that was asked for"),
    Constraint("train_flops", "Training cost"),
    Constraint("memorised_share", "Data size: few training images"),
)


DISTANCE = describe("fd")


@dataclass(frozen=True)
class Choice:
    """What to take. winners: several where they cannot be told apart. text: by how much, and what it costs.

    sure: False where single seeds leave the noise unknown, so that the winner has the best value and no more is known.
    """

    question: str
    winners: tuple[str, ...]
    text: str
    sure: bool = True


@dataclass(frozen=True)
class Ranking:
    """best: the highest or lowest mean, then all that cannot be told apart from it. others: the rest, in order.

    sure: False where single seeds leave the noise unknown, so that the best is the best mean and no more is known.
    """

    best: tuple[str, ...]
    others: tuple[str, ...]
    sure: bool


def rank(values: Mapping[str, Value], better: Better) -> Ranking:
    """Who is ahead, and who cannot be told apart from that."""
    order = sorted(values, key=lambda name: values[name].mean, reverse=better == "higher")
    compared = Comparison(values, better)
    differs = {name: compared.differ(name, order[0]) for name in order[1:]}
    best = [order[0], *(name for name in order[1:] if differs[name] is False)]
    others = [name for name in order[1:] if name not in best]
    return Ranking(tuple(best), tuple(others), None not in differs.values())


def guide(candidates: Sequence[Candidate], same_budget: str | None, distance: str) -> list[Choice]:
    """A choice for quality alone, then one for each constraint that was measured.

    Whoever is broken is no choice, as long as someone is not.
    same_budget: the kind of the study's budget. distance: label of the Fréchet distance.
    """
    sound = [each for each in candidates if not each.broken]
    lost = [f"{each.name} ({each.broken})" for each in candidates if each.broken] if sound else []
    candidates = sound or candidates
    quality = {each.name: each.quality for each in candidates}
    best = rank(quality, "lower")
    text = _sentence(quality, best, distance, DISTANCE)
    if lost:
        text += f" Left out of this guide: {joined(lost)}."
    choices = [Choice("Nothing but quality", best.best, text, best.sure)]
    for constraint in CONSTRAINTS:
        values = {each.name: each.values[constraint.name] for each in candidates if constraint.name in each.values}
        if len(values) > 1 or (lost and values):
            choices.append(_choice(constraint, values, quality, best, same_budget, distance))
    options = _ladder(candidates, distance)
    return [
        replace(choice, text=f"{choice.text} {options}")
        if options and choice.question == CONSTRAINTS[0].question
        else choice
        for choice in choices
    ]


def _choice(
    constraint: Constraint,
    values: Mapping[str, Value],
    quality: Mapping[str, Value],
    best: Ranking,
    same_budget: str | None,
    distance: str,
) -> Choice:
    if constraint.name == "train_flops" and same_budget in ("flops", "seconds"):
        what = "operations" if same_budget == "flops" else "seconds of training"
        text = f"All were given the same {what}, so quality decides: {_sentence(quality, best, distance, DISTANCE)}"
        return Choice(constraint.question, best.best, text, best.sure)
    if constraint.name == "memorised_share":
        return _data_size(constraint, values, quality, distance)
    ranking = rank(values, constraint.better)
    text = _sentence(values, ranking, constraint.quantity.label, constraint.quantity)
    winners, sure = ranking.best, ranking.sure
    if len(winners) > 1 and ranking.sure:
        among = {name: quality[name] for name in winners}
        finest = rank(among, "lower")
        if len(finest.best) < len(winners):
            winners, sure = finest.best, finest.sure
            text += f" Among these, quality decides: {_sentence(among, finest, distance, DISTANCE)}"
    return Choice(constraint.question, winners, text + _price(winners, quality, best, distance), sure)


def _data_size(
    constraint: Constraint, values: Mapping[str, Value], quality: Mapping[str, Value], distance: str
) -> Choice:
    """Whoever copies has too little data for its size; among those that do not, quality decides."""
    copying = [name for name, value in values.items() if value.mean >= LEANING]
    free = {name: quality[name] for name in values if name not in copying}
    shares = joined([f"{name} {format_mean(value, constraint.quantity)}" for name, value in values.items()])
    text = f"Share of memorised samples, as far as their nearest images tell: {shares}. "
    if not free:
        least = rank(values, constraint.better)
        text += "All of them lean towards the training images, with so few of them."
        return Choice(constraint.question, least.best, text, least.sure)
    finest = rank(free, "lower")
    verdict = (
        f"{joined(copying)} lean{'s' if len(copying) == 1 else ''} towards the training images. "
        if copying
        else ("None shows signs of memorised images, so quality decides: ")
    )
    text += verdict + _sentence(free, finest, distance, DISTANCE)
    return Choice(constraint.question, finest.best, text, finest.sure)


def _sentence(values: Mapping[str, Value], ranking: Ranking, measure: str, quantity: Quantity) -> str:
    """Who is ahead, by how much, with the spread."""

    def shown(name: str) -> str:
        return format_mean(values[name], quantity, unit=True)

    first = ranking.best[0]
    told = f"{first} has {shown(first)}" if len(values) > 1 else f"only {first} is left"
    subject = f"{measure[0].upper()}{measure[1:]}: {told}"
    if len(values) == 1:
        return f"{subject}."
    if len(ranking.best) > 1:
        rivals = joined([f"{name} ({shown(name)})" for name in ranking.best[1:]])
        equal = all(values[name].mean == values[first].mean for name in ranking.best)
        how = "the same as" if equal else "within the noise of the seeds from"
        subject += f", {how} {rivals}"
    if ranking.others:
        after = ranking.others[0]
        lead = _lead(values[first].mean, values[after].mean)
        subject += f"; {after} follows with {shown(after)}{lead}"
    if not ranking.sure and ranking.others:
        subject += " (one seed: the noise is not known)"
    return subject + "."


def _lead(best: float, other: float) -> str:
    """, 1.8 times as much."""
    low, high = sorted((best, other))
    if low <= 0:
        return ""
    factor = high / low
    if factor < 2:
        return f", {factor - 1:.0%} more" if other > best else f", {1 - low / high:.0%} less"
    times = number(float(f"{factor:.2g}"))
    return f", {times} times as much" if other > best else f", {times} times less"


def _price(winners: Sequence[str], quality: Mapping[str, Value], best: Ranking, distance: str) -> str:
    """What the choice costs in quality."""
    if set(winners) & set(best.best):
        also = "the best" if len(best.best) == 1 else "among the best"
        return f" It is also {also} in quality." if len(winners) == 1 and best.sure else ""
    one, first = winners[0], best.best[0]
    prices = [format_mean(quality[name], DISTANCE) for name in (one, first)]
    return f" The price: {distance} {prices[0]}, where {first} has {prices[1]}."


def _ladder(candidates: Sequence[Candidate], distance: str) -> str:
    """The quickest first, then whatever is better and slower, other numbers of steps included."""
    points = [(*option, f"{each.name} in {what}") for each in candidates for what, option in each.options.items()]
    points += [
        (each.values["latency_s"].mean, each.quality.mean, each.name)
        for each in candidates
        if "latency_s" in each.values
    ]
    rungs = list(_front(sorted(points)))
    if len(rungs) < 2:
        return ""
    shown = describe("latency_s").format
    steps = [f"from {shown(time, digits=2, unit=True)} {name} ({quality:.3g})" for time, quality, name in rungs]
    return f"{distance} by time, as measured: {', '.join(steps)}."


def _front(points: Sequence[tuple[float, float, str]]) -> Iterator[tuple[float, float, str]]:
    lowest = float("inf")
    for time, quality, name in points:
        if quality < lowest * 0.95:  # less than that is no step worth waiting for
            lowest = quality
            yield time, quality, name


# ---------------------------------------------------------------------------------------------- from results


def candidate(one: EntryResults) -> Candidate:
    """An entry as the guide sees it."""
    quality = one.value("fd")
    assert quality is not None
    known = {each.name: one.value(each.name) for each in CONSTRAINTS}
    known |= {"tokens_per_image": Value(one.tokens, exact=True), "memorised_share": _memorised(one)}
    values = {name: value for name, value in known.items() if value is not None}
    return Candidate(one.entry.title, quality, values, dict(_options(one)), broken(one))


def broken(one: EntryResults) -> str:
    """What most of its runs suffer from, of what no figure can be read without; empty for a sound entry."""
    kinds = Counter(kind for found in one.findings.values() for kind in {each.kind for each in found} & set(BROKEN))
    return joined([kind for kind, count in kinds.items() if count > len(one.findings) / 2])


def _memorised(one: EntryResults) -> Value | None:
    """The share of memorised samples, by seed; none where chance shows as many."""
    found = [results.find("memorised_share") for _, results in one.final]
    shares = [entry.value if entry.value > (entry.floor or 0) else 0.0 for entry in found if entry is not None]
    return Value.of(shares) if shares else None


def _options(one: EntryResults) -> Iterator[tuple[str, tuple[float, float]]]:
    """Latency and distance by number of steps, where they were measured on as many images as the final figures."""
    n, times = one.final[0][1].measurements[0].n, one.times.steps if one.times else {}
    for record, results in one.grid:
        entry = results.find("fd")
        if record.kind == "steps" and record.at and entry is not None and entry.n == n and int(record.at) in times:
            yield f"{record.at:g} steps", (times[int(record.at)], entry.value)
