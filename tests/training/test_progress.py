"""What is printed while a training runs, and times as people read them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from artok.training import progress
from artok.training.log import duration
from artok.training.progress import SILENT, Progress


@dataclass
class Clock:
    now: float = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (61, "1m01s"), (3599, "59m59s"), (3600, "1h00m"), (3725, "1h02m"),
        (48 * 3600 - 1, "47h59m"), (48 * 3600, "2.0 days"), (86_400 * 1234.5, "1,234.5 days"),
    ],
)  # fmt: skip
def test_times_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_has_the_time_left_at_the_speed_since_the_start(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    shown = Progress("vq")
    with shown.over(1_000, 5_000):
        shown.show(1_000, {})
        clock.now += 100
        shown.show(2_000, {"loss": 0.123456, "psnr": 20.0})
        shown.show(3_000, {"psnr": 21.5}, "held out")
        shown.show(5_008, {})  # the last step goes beyond
    first, second, third, last = capfd.readouterr().err.splitlines()
    assert first == "vq     1,000/5,000 images, ? left"
    assert second == "vq     2,000/5,000 images, 5m00s left  loss 0.1235  psnr 20"  # 10 images a second
    assert third == "vq     3,000/5,000 images, 1m40s left  held out: psnr 21.5"
    assert last == "vq     5,008/5,000 images, 0s left"


def test_without_a_terminal_a_long_silence_ends_with_a_line(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    shown = Progress("vq")
    with shown.over(0, 100):
        clock.now += SILENT
        shown.advance(10)
        assert not capfd.readouterr().err
        clock.now += 1
        shown.advance(20)
        assert "20/100 images" in capfd.readouterr().err
        clock.now += SILENT
        shown.advance(30)
        assert not capfd.readouterr().err


def test_on_a_terminal_a_bar_follows(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = Progress("vq")
    with shown.over(30, 100):
        assert shown.bar is not None
        task = shown.bar.tasks[0]
        assert (task.completed, task.total, task.description) == (30, 100, "vq")
        shown.advance(70)
        assert task.completed == 70
    assert shown.bar is None and "70/100" in capfd.readouterr().err


def test_all_processes_but_the_first_are_quiet(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    shown = Progress("vq", quiet=True)
    with shown.over(0, 100):
        clock.now += 2 * SILENT
        shown.advance(10)
        shown.show(20, {})
        shown.say("text")
        assert shown.bar is None
    assert not capfd.readouterr().err


def test_unreadable_images_are_counted_and_the_first_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    for count, more in ((1, ""), (3, ""), (5, " and 2 more")):
        Progress("vq").skipped([f"{index}.png" for index in range(count)])
        named = "; ".join(f"{index}.png" for index in range(min(count, 3)))
        assert capfd.readouterr().err == f"skipped {count} unreadable: {named}{more}\n"


@dataclass
class Noted:
    notes: list[str] = field(default_factory=list)


def test_a_note_is_shown_once(capfd: pytest.CaptureFixture[str]) -> None:
    shown, splits = Progress("vq"), (Noted(["one", "two"]), Noted(["two"]))
    shown.notes(*splits)  # type: ignore[arg-type]
    splits[0].notes.append("[three]")
    shown.notes(*splits)  # type: ignore[arg-type]
    assert capfd.readouterr().err.splitlines() == ["one", "two", "[three]"]
