"""Whether training went well, by rules on its log and on what it led to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from artok.metrics.results import Results
from artok.studies.finished import diverged
from artok.studies.tables import measured

WINDOW = 5  # points before a spike
DEVIATIONS, SHARE = 6.0, 0.1  # a spike: so many median deviations above them, and that share of all the loss fell
SETTLED = 0.2  # the share of training in which the loss may jump as it likes
FEW = 0.1  # collapsed: recall below that share of what real images have

RULES = (
    f"A spike is a mean training loss, after the first {SETTLED:.0%} of training, more than {DEVIATIONS:.0f} median "
    f"deviations above the median of the {WINDOW} points before it and higher by more than {SHARE:.0%} of all that the "
    "loss fell. A run diverged when a loss was no finite number, or ended above where it began (of a model without an "
    f"opponent). It collapsed when its samples leave out a class, or have less than {FEW:.0%} of the recall of real "
    "images."
)


@dataclass(frozen=True)
class Stability:
    """Of one run. spikes: images seen and how many times the fall of the whole training the loss jumped."""

    spikes: tuple[tuple[int, float], ...] = ()
    diverged: bool = False
    collapsed: bool = False


Points = list[tuple[int, float]]
Event = Mapping[str, Any]


def merged(log: Sequence[Event], every: int) -> list[Event]:
    """The log with intervals of training that a stop and a resumption cut in two put together again.

    every: images of an interval. Means are weighted by images, so the result is that of a training without a stop.
    """
    found: list[Event] = []
    before, weight = 0, 0
    for event in log:
        if event["event"] != "train":
            if event["event"] not in ("stop", "resume"):
                found.append(event)
            continue
        images = int(event["images"])
        count, cut = images - before, before % every and images - before < every
        if cut and found and (last := _last_report(found)) is not None and before // every == (images - 1) // every:
            found[last] = _together(found[last], weight, event, count)
            weight += count
        else:
            found.append(event)
            weight = count
        before = images
    return found


def _last_report(events: Sequence[Event]) -> int | None:
    return next((index for index in range(len(events) - 1, -1, -1) if events[index]["event"] == "train"), None)


def _together(one: Event, many: int, other: Event, more: int) -> Event:
    """Two parts of an interval as one, at the place of the later."""
    shared = [key for key, value in one.items() if isinstance(value, float) and isinstance(other.get(key), float)]
    means = {key: (many * one[key] + more * other[key]) / max(many + more, 1) for key in shared if key != "time"}
    return {**other, **means}


def losses(log: Sequence[Event], every: int) -> Points:
    """Mean training loss against images seen, a point for each interval of the log."""
    return [
        (int(event["images"]), float(event["model_loss"]))
        for event in merged(log, every)
        if event["event"] == "train" and "model_loss" in event
    ]


def spikes(points: Points) -> list[tuple[int, float]]:
    """Where the loss jumped, and by what share of its whole fall."""
    finite = [(images, value) for images, value in points if math.isfinite(value)]
    if len(finite) <= WINDOW:
        return []
    values = [value for _, value in finite]
    fall = max(values[:WINDOW]) - min(values)
    found = []
    for index in range(WINDOW, len(finite)):
        images, value = finite[index]
        window = values[index - WINDOW : index]
        middle = median(window)
        deviation = median(abs(each - middle) for each in window)
        jump = value - middle
        if images > SETTLED * finite[-1][0] and jump > DEVIATIONS * deviation and fall > 0 and jump > SHARE * fall:
            found.append((images, jump / fall))
    return found


def judge(log: Sequence[Event], every: int, results: Results | None) -> Stability:
    """The rules applied to a run; without results only to its log."""
    points = losses(log, every)
    opposed = any("critic_loss" in event for event in log)
    risen = not opposed and len(points) > 1 and points[-1][1] > points[0][1]
    return Stability(tuple(spikes(points)), diverged(log) or risen, results is not None and collapsed(results))


def collapsed(results: Results) -> bool:
    """Whether the samples leave out a class or most of the variety."""
    covered, recall = measured(results, "classes covered"), measured(results, "recall")
    if covered is not None and covered.value < 1:
        return True
    return recall is not None and bool(recall.floor) and recall.value < FEW * (recall.floor or 0)
