"""What a run's log says of its health, by rules that stand here: collapse, divergence, instability, a lost balance.

Each rule is a function of the log's events with its threshold as a constant beside it, and each finding names its
numbers, so that a reader can disagree. A run is healthy when no rule is met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, TypeAlias

from artok.training.log import NONFINITE

Event: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[[Sequence[Event]], Iterator["Finding"]]

COLLAPSED, OFF_DISTRIBUTION = "collapsed", "off-distribution"
CODEBOOK_COLLAPSED = "codebook collapsed"
DIVERGED, UNSTABLE = "diverged", "unstable"
CRITIC_WON, CRITIC_LOST = "critic too strong", "critic too weak"

# Collapse, by the last monitor.
DISTINCT = 0.5  # fewer of the samples than this are distinct
CLASSES = 0.8  # fewer of the classes than this are covered,
TOLD_APART = 0.9  # if the features recognise at least so many of the classes in real images
COVERAGE = 0.25  # coverage is below this share of what real images reach
OF_BEST = 0.5  # coverage is below this share of the run's best so far
RECALL = 0.25  # recall is below this share of what real images reach,
CROWDED = 0.6  # while samples lie so much closer to one another than real images: a few shapes, made over and over
PRECISION = 0.25  # below this share of what real images reach, samples are not few of the data's kinds but none of them
GROWN = 0.5  # share of the training before which little coverage, few classes or no likeness is just a beginning
# What the rules read of a monitor; one that lacks any of it, as of an earlier version, is passed over.
MONITORED = {"samples", "distinct", "neighbour_ratio"} | {
    f"{name}{of}" for name in ("coverage", "recall", "precision") for of in ("", "_floor")
}

# Collapse of a codebook, by its use over a window of training. Either threshold means that a codebook of half or of a
# quarter of the size, so with tokens of one or two bits less, would hold as much.
USED = 0.5  # share of the codes that occur,
EFFECTIVE = 0.25  # or their perplexity as a share of the codebook is below; for the last REPORTS reports
BEGUN = 0.1  # share of the training before which an encoder has not spread its latents yet

# Divergence, by the losses of a single player.
RISEN = 3.0  # times the run's best; and that for
REPORTS = 3  # reports in a row, up to the last

# Instability, by reports that leap above the median of those before.
NORM_LEAP, LOSS_LEAP = 10.0, 3.0  # times that median, of gradient norms and of a single player's loss
WINDOW, LEAST = 20, 5  # reports that the median is taken of, at most and at least

# The balance of two players: the share of real images that the critic scores above made ones, over
LATELY = 0.25  # the last share of the images so far (and at least REPORTS reports)
WON, LOST = 0.99, 0.35  # at the balance that a game aims for it is a half


@dataclass(frozen=True)
class Finding:
    """kind: one of the words above. since: images seen when it began. text: the numbers and the rule, in a sentence."""

    kind: str
    since: int
    text: str


def diagnose(events: Sequence[Event]) -> list[Finding]:
    """What a log (see `artok.training.log.read_log`) says is wrong at its end, the gravest first; empty when healthy.

    Events later on may take a finding back: a run recovers from a collapse, not from a leap of its loss.
    """
    rules: tuple[Rule, ...] = (_diverged, _collapse, _codebook, _balance, _unstable)
    return [finding for rule in rules for finding in rule(events)]


def verdict(findings: Sequence[Finding]) -> str:
    """All findings in one line."""
    if not findings:
        return "healthy: no sign of collapse, divergence or instability"
    return "; ".join(f"{finding.kind}: {finding.text}" for finding in findings)


def _of(events: Sequence[Event], event: str) -> list[Event]:
    return [each for each in events if each["event"] == event]


def _values(events: Sequence[Event], key: str) -> list[tuple[int, float]]:
    """(images, value) of each report of training that has one."""
    return [(each["images"], each[key]) for each in _of(events, "train") if key in each]


def _lone_loss(events: Sequence[Event]) -> list[tuple[int, float]]:
    """The model's loss, where it measures how well the model does: against a critic it measures who is ahead."""
    return [] if _values(events, "critic_loss") else _values(events, "model_loss")


# ---------------------------------------------------------------------------------------------- divergence


def _diverged(events: Sequence[Event]) -> Iterator[Finding]:
    for each in _of(events, NONFINITE):
        yield Finding(DIVERGED, each["images"], each["text"])
        return
    for each in _of(events, "train")[-1:]:
        bad = [key for key, value in each.items() if key.endswith("_loss") and not math.isfinite(value)]
        if bad:
            yield Finding(DIVERGED, each["images"], f"{bad[0]} is no finite number")
            return
    losses = _lone_loss(events)
    best = min((loss for _, loss in losses), default=0.0)
    risen = _streak([best > 0 and loss > RISEN * best for _, loss in losses])
    if risen >= REPORTS:
        where = next(images for images, loss in losses if loss == best)
        yield Finding(
            DIVERGED,
            losses[-risen][0],
            f"the loss is {losses[-1][1]:.3g}, {losses[-1][1] / best:.1f} times its best, {best:.3g} after {where:,} "
            f"images (rule: over {RISEN:g} times for {REPORTS} reports)",
        )


def _streak(flags: Sequence[bool]) -> int:
    """How many at the end are set, without a gap."""
    return next((index for index, flag in enumerate(reversed(flags)) if not flag), len(flags))


def _wanted(events: Sequence[Event]) -> int:
    """Images of the whole training."""
    return max((each.get("wanted", 0) for each in events if each["event"] in ("start", "resume")), default=0)


# ---------------------------------------------------------------------------------------------- collapse


def _collapse(events: Sequence[Event]) -> Iterator[Finding]:
    monitors = [each for each in _of(events, "monitor") if each.keys() >= MONITORED]
    wanted = _wanted(events)
    found = [_at(monitors[: index + 1], wanted) for index in range(len(monitors))]
    since = _streak([each is not None for each in found])
    if since and found[-1] is not None:
        kind, text = found[-1]
        yield Finding(kind, monitors[-since]["images"], text)


def _at(monitors: Sequence[Event], wanted: int) -> tuple[str, str] | None:
    """Kind and text of what the last of these monitors shows; the rules in the order of how sure they are."""
    last = monitors[-1]
    best = max(monitors, key=lambda each: each["coverage"])
    coverage, floor = last["coverage"], last["coverage_floor"]
    grown = last["images"] >= GROWN * wanted
    if last["distinct"] < DISTINCT:
        return COLLAPSED, (
            f"only {last['distinct']:.0%} of {last['samples']} samples are distinct, the others repeat one another "
            f"(rule: under {DISTINCT:.0%})"
        )
    fallen = coverage < OF_BEST * best["coverage"]
    if last["precision"] < PRECISION * last["precision_floor"] and (grown or fallen):
        return OFF_DISTRIBUTION, (
            f"{last['precision']:.0%} of the samples lie where real images do, and {last['precision_floor']:.0%} of "
            f"real ones (rule: under {PRECISION:.0%} of that)"
        )
    if fallen:
        return COLLAPSED, (
            f"samples cover {coverage:.0%} of real images, and covered {best['coverage']:.0%} after "
            f"{best['images']:,} images (rule: under {OF_BEST:.0%} of the best)"
        )
    if grown and coverage < COVERAGE * floor:
        return COLLAPSED, (
            f"samples cover {coverage:.0%} of real images, where other real ones cover {floor:.0%} "
            f"(rule: under {COVERAGE:.0%} of that)"
        )
    recall, ratio = last["recall"], last["neighbour_ratio"]
    if grown and recall < RECALL * last["recall_floor"] and ratio < CROWDED:
        return COLLAPSED, (
            f"{recall:.0%} of real images lie where samples do, {last['recall_floor']:.0%} where other real ones do, "
            f"and samples lie {ratio:.2f} times as far apart as real images (rule: under {RECALL:.0%} of that "
            f"and under {CROWDED:g} times)"
        )
    classes = last.get("classes_covered", 1.0)
    if grown and classes < CLASSES and last.get("classes_covered_floor", 0.0) >= TOLD_APART:
        return COLLAPSED, (
            f"{classes:.0%} of the classes are recognised in what is made for them (rule: under {CLASSES:.0%}, where "
            f"real images show {TOLD_APART:.0%} or more)"
        )
    return None


def _codebook(events: Sequence[Event]) -> Iterator[Finding]:
    sizes = [each["codes_used"] / each["codebook_usage"] for each in _of(events, "validation") if "codes_used" in each]
    begun = BEGUN * _wanted(events)
    reports = [each for each in _of(events, "train") if "usage" in each and each["images"] >= begun]
    if not sizes:
        return
    least = EFFECTIVE * sizes[-1]
    poor = _streak([each["usage"] < USED or each["perplexity"] < least for each in reports])
    if poor >= REPORTS:
        last = reports[-1]
        yield Finding(
            CODEBOOK_COLLAPSED,
            reports[-poor]["images"],
            f"{last['usage']:.0%} of {sizes[-1]:,.0f} codes are in use, their perplexity is {last['perplexity']:.3g} "
            f"(rule: under {USED:.0%}, or a perplexity under {EFFECTIVE:.0%} of the codes, for {REPORTS} reports)",
        )


# ---------------------------------------------------------------------------------------------- instability


def _unstable(events: Sequence[Event]) -> Iterator[Finding]:
    names = dict.fromkeys(key for each in _of(events, "train") for key in each if key.endswith("_gradient_norm"))
    series = [(name, _values(events, name), NORM_LEAP) for name in names]
    leaps = [
        (images, value / usual, name, bound)
        for name, values, bound in [*series, ("model_loss", _lone_loss(events), LOSS_LEAP)]
        for images, value, usual in _against_the_past(values)
        if usual > 0 and value > bound * usual
    ]
    if leaps:
        images, times, name, bound = max(leaps, key=lambda leap: leap[1] / leap[3])
        many = f", the highest of {len(leaps)} such leaps" if len(leaps) > 1 else ""
        yield Finding(
            UNSTABLE,
            min(leap[0] for leap in leaps),
            f"{name} leapt to {times:.1f} times its usual after {images:,} images{many} (rule: over {bound:g} times "
            f"the median of up to {WINDOW} reports before)",
        )


def _against_the_past(values: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float, float]]:
    """(images, value, median of the values before) of each finite value that has enough before it."""
    finite = [(images, value) for images, value in values if math.isfinite(value)]  # fp16 skips steps that are not
    for index in range(LEAST, len(finite)):
        past = [value for _, value in finite[max(0, index - WINDOW) : index]]
        yield *finite[index], median(past)


# ---------------------------------------------------------------------------------------------- balance


def _balance(events: Sequence[Event]) -> Iterator[Finding]:
    known = _values(events, "critic_accuracy")
    start = (1 - LATELY) * events[-1]["images"] if events else 0
    late = [value for images, value in known if images > start and math.isfinite(value)]
    if len(late) < REPORTS:
        return
    mean, since = fmean(late), next(images for images, _ in known if images > start)
    text = f"over the last {LATELY:.0%} of the images the critic scores real above made in {mean:.1%} of the cases"
    if mean > WON:
        yield Finding(CRITIC_WON, since, f"{text}, so little is left to learn from it (rule: over {WON:.0%})")
    if mean < LOST:
        yield Finding(CRITIC_LOST, since, f"{text}, so it cannot tell them apart (rule: under {LOST:.0%})")
