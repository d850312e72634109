"""Merges log intervals that a stop and a resume split in two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artok.saved import read_training
from artok.training.health import Event


def merge_resumed_log(log: Sequence[Event], every: int) -> list[Event]:
    """The log of a training without a stop: split intervals are merged, their means weighted by images.

    every: images per interval.
    """
    merged: list[Event] = []
    before, weight = 0, 0
    for event in log:
        if event["event"] != "train":
            if event["event"] not in ("stop", "resume"):
                merged.append(event)
            continue
        images = int(event["images"])
        count, cut = images - before, before % every and images - before < every
        if cut and merged and (last := _last_report(merged)) is not None and before // every == (images - 1) // every:
            merged[last] = _merge_intervals(merged[last], weight, event, count)
            weight += count
        else:
            merged.append(event)
            weight = count
        before = images
    return merged


def _last_report(events: Sequence[Event]) -> int | None:
    return next((index for index in range(len(events) - 1, -1, -1) if events[index]["event"] == "train"), None)


def _merge_intervals(one: Event, many: int, other: Event, more: int) -> Event:
    """Two parts of an interval as one event, with the later's place and time."""
    shared = [key for key, value in one.items() if isinstance(value, float) and isinstance(other.get(key), float)]
    means = {key: (many * one[key] + more * other[key]) / max(many + more, 1) for key in shared if key != "time"}
    return {**other, **means}


def log_interval(folder: Path) -> int:
    """Images between the reports of a run's training; 1 where its config does not say."""
    interval = read_training(folder).get("log_every")
    return interval if isinstance(interval, int) else 1
