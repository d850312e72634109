"""The log of a run that was stopped is read as that of a run that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artok.training.merged_log import log_interval, merge_resumed_log

STEP, EVERY, IMAGES = 16, 64, 256
LOSSES = [float(index * index) for index in range(IMAGES // STEP)]  # of each step


def report(first: int, after: int) -> dict[str, Any]:
    """Of the steps from `first` on, up to `after` images."""
    steps = LOSSES[first // STEP : after // STEP]
    values = {"model_loss": sum(steps) / len(steps), "skipped": after}
    return {"event": "train", "images": after, "time": float(after), **values}


def log(*stops: int) -> list[dict[str, Any]]:
    """With a report at each interval and where it was stopped."""
    events: list[dict[str, Any]] = [{"event": "start", "images": 0, "time": 0.0}]
    before = 0
    for after in sorted({*range(EVERY, IMAGES + 1, EVERY), *stops}):
        events.append(report(before, after))
        if after in stops:
            events += [{"event": name, "images": after, "time": 1.0} for name in ("checkpoint", "stop", "resume")]
        before = after
    return [*events, {"event": "end", "images": IMAGES, "time": 1.0}]


@pytest.mark.parametrize(
    "stops", [(), (16,), (80,), (112,), (80, 96), (80, 96, 112), (16, 96, 160, 240), (64,), (64, 80), (128, 192)]
)
def test_means_are_those_of_a_run_without_a_stop(stops: tuple[int, ...]) -> None:
    merged = merge_resumed_log(log(*stops), EVERY)
    reports = [event for event in merged if event["event"] == "train"]
    wanted = [event for event in log() if event["event"] == "train"]
    assert [event["images"] for event in reports] == [64, 128, 192, 256]
    for one, other in zip(reports, wanted, strict=True):
        assert one["model_loss"] == pytest.approx(other["model_loss"])
        assert (one["time"], one["skipped"]) == (other["time"], other["skipped"])  # the last of the parts
    others = [event["event"] for event in merged if event["event"] != "train"]
    assert others == ["start", *["checkpoint"] * len(stops), "end"]


def test_steps_longer_than_an_interval_are_left_as_they_are() -> None:
    events = [report(first, first + STEP) for first in range(0, IMAGES, STEP)]
    for every in (1, 10, STEP):
        assert merge_resumed_log(events, every) == events


def test_an_interval_is_that_of_the_runs_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {log_every: 48}\n")
    assert log_interval(tmp_path) == 48
    (tmp_path / "config.yaml").write_text("name: a\n")
    assert log_interval(tmp_path) == 1
