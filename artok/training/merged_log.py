"""A run's log as it would be had its training never been stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artok.config import read_yaml
from artok.saved import CONFIG
from artok.training.health import Event


def unbroken(log: Sequence[Event], every: int) -> list[Event]:
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


def log_interval(folder: Path) -> int:
    """Images between the reports of a run's training; 1 where its config does not say."""
    return int(read_yaml(folder / CONFIG).get("training", {}).get("log_every", 1))
