"""The loop: what happens after how many images, with which weights, and what a run that has ended is told."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.models import tokenizer_experiment
from safetensors.torch import load_file
from torch import Tensor, nn

from artok import files
from artok.errors import DataError, RunError
from artok.training import checkpoints, meter
from artok.training.interrupt import ASK_EVERY, ASK_SECONDS, Interrupt, catch_signals
from artok.training.log import LOG, NONFINITE, Log, read_log
from artok.training.loop import Trainer
from artok.training.meter import Meter
from artok.training.progress import Progress
from artok.training.run import make_accelerator
from artok.training.task import Step, Stream, Task

EVERY = {"log_every": 32, "validate_every": 48, "monitor_every": 64, "preview_every": 32, "snapshot_every": 32}
LINE = {"images": 96, "ema": 0.3, "optimizer": {"lr": 0.5, "schedule": "linear"}, "checkpoint_every": 80, **EVERY}


class Line(Task):
    """A model of one weight, which says what it is when it is asked for anything."""

    images: Any = None

    def __init__(self, experiment: Any) -> None:
        self.experiment = experiment
        self.players = {"model": nn.Linear(1, 1, bias=False).double()}
        self.stepped: list[float] = []  # the weight before each step
        self.starts: list[int] = []

    def batches(self, start: int, rank: int, world: int) -> Stream[Tensor]:
        self.starts.append(start)
        while True:
            yield torch.ones(4, 1, dtype=torch.float64)

    def split(self, batch: Tensor, parts: int) -> list[Tensor]:
        return list(batch.chunk(parts))

    def losses(self, modules: Mapping[str, nn.Module], player: str, batch: Tensor, seen: int) -> Step:
        assert modules[player].training
        self.stepped.append(self.players["model"].weight.item())
        return Step({"loss": modules[player](batch).mean()})

    def say(self) -> dict[str, float]:
        assert not self.players["model"].training
        return {"weight": self.players["model"].weight.item()}

    def validate(self) -> dict[str, float]:
        return self.say()

    def measure(self) -> dict[str, float]:
        return self.say()

    def monitor(self) -> dict[str, float]:
        return self.say() | {"weight_floor": 0.0}

    def preview(self, path: Path) -> None:
        path.write_text(str(self.say()["weight"]))


def trainer_in(folder: Path, **training: Any) -> tuple[Trainer, Line]:
    experiment = tokenizer_experiment(training=LINE | training)
    task = Line(experiment)
    accelerator = make_accelerator(experiment, folder, torch.device("cpu"))
    return Trainer(task, folder, accelerator, Progress("line")), task


def places(folder: Path) -> dict[str, list[int]]:
    """After how many images each kind of event was."""
    found: dict[str, list[int]] = {}
    for event in read_log(folder / LOG):
        found.setdefault(event["event"], []).append(event["images"])
    return found


def names(folder: Path, ending: str) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob(f"0*{ending}"))


def test_each_thing_happens_after_its_images_with_the_averaged_weights(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer, task = trainer_in(tmp_path)
    begun = list[bool]()
    assert trainer.run(lambda: begun.append((tmp_path / LOG).exists()), fresh=False)
    assert begun == [False] and task.starts == [0]
    assert places(tmp_path) == {
        "start": [0],
        "train": [32, 64, 80, 96],  # also before a checkpoint
        "validation": [48, 96],
        "monitor": [64, 96],
        "checkpoint": [80, 96],
        "end": [96],
    }
    assert names(tmp_path / "snapshots", ".safetensors") == [32, 64]  # the end is in model.safetensors
    assert names(tmp_path / "samples", ".png") == [32, 64, 96]
    averages, average = dict[int, float](), task.stepped[0]
    weights = [*task.stepped, task.players["model"].weight.item()]
    for step, weight in enumerate(weights[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        averages[16 * step + 16] = average
    said = {(event["event"], event["images"]): event for event in read_log(tmp_path / LOG)}
    for (event, images), values in said.items():
        if event in ("validation", "monitor", "checkpoint"):
            assert values["weight"] == pytest.approx(averages[images], abs=1e-12), (event, images)
    for images in (32, 64):
        kept = load_file(tmp_path / "snapshots" / f"{images:012d}.safetensors")["weight"]
        assert float(kept) == pytest.approx(averages[images], abs=1e-12)
        assert float((tmp_path / "samples" / f"{images:012d}.png").read_text()) == pytest.approx(averages[images])
    assert float(load_file(tmp_path / "model.safetensors")["weight"]) == pytest.approx(averages[96], abs=1e-12)
    assert said["train", 64]["lr"] == pytest.approx(0.5 / 3)  # of 96 images 32 are left
    assert said["train", 64]["model_loss"] == pytest.approx((weights[2] + weights[3]) / 2)
    assert said["train", 80]["model_loss"] == pytest.approx(weights[4])
    assert said["train", 64]["model_gradient_norm"] == pytest.approx(1)
    assert said["train", 96]["skipped"] == 0 and 0 <= said["train", 32]["core_seconds"] < 60
    start = {"processes": 1, "wanted": 96, "device": "cpu", "threads": torch.get_num_threads()}
    assert start.items() <= said["start", 0].items()
    printed = capfd.readouterr().err
    assert "held out: weight" in printed and "samples: weight" in printed and "weight_floor" not in printed


def test_a_monitor_follows_validation_where_it_has_no_interval_of_its_own(tmp_path: Path) -> None:
    trainer, _ = trainer_in(tmp_path, monitor_every=None, snapshot_every=None, ema=None)
    assert trainer.run(lambda: None, fresh=False)
    assert places(tmp_path)["monitor"] == [48, 96]
    assert not (tmp_path / "snapshots").exists()
    assert float(load_file(tmp_path / "model.safetensors")["weight"]) == trainer.modules["model"].weight.item()


def test_a_run_that_has_ended_is_left_alone_but_for_a_lost_last_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer, _ = trainer_in(tmp_path)
    assert trainer.run(lambda: None, fresh=False)
    whole = (tmp_path / LOG).read_text()
    for lost in (0, 1):
        lines = whole.splitlines(keepends=True)
        (tmp_path / LOG).write_text("".join(lines[: len(lines) - lost]))
        again, task = trainer_in(tmp_path)
        assert again.run(lambda: pytest.fail("it is begun"), fresh=False)
        assert not task.starts and "is finished: 96 of 96 images" in capfd.readouterr().err
        assert [line["event"] for line in read_log(tmp_path / LOG)].count("end") == 1
    (tmp_path / LOG).unlink()
    again, _ = trainer_in(tmp_path)
    assert again.run(lambda: pytest.fail("it is begun"), fresh=False)
    assert not (tmp_path / LOG).exists()


def test_a_stopped_run_reports_saves_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def stop(self: Interrupt, accelerator: Any, step: int) -> bool:
        asked.append(step)
        return step == 3

    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "should_stop", stop)
        trainer, _ = trainer_in(tmp_path)
        assert trainer.run(lambda: None, fresh=False) is False
    assert asked == [1, 2, 3]
    assert places(tmp_path)["train"] == [32, 48] and places(tmp_path)["checkpoint"] == places(tmp_path)["stop"] == [48]
    trainer, task = trainer_in(tmp_path)
    assert trainer.run(lambda: None, fresh=False)
    assert task.starts == [48] and places(tmp_path)["resume"] == [48] and places(tmp_path)["end"] == [96]
    trainer, task = trainer_in(tmp_path)
    assert trainer.run(lambda: None, fresh=True)
    assert task.starts == [0] and "resume" not in places(tmp_path)


def test_a_finding_is_warned_of_once_and_a_verdict_ends_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer, _ = trainer_in(tmp_path)
    trainer.log = Log(tmp_path / LOG, -1)
    trainer.check_health()
    assert not trainer.log.events
    trainer.seen = 16
    trainer.log.write(NONFINITE, 16, {"text": "the loss is no finite number"})
    for _ in range(2):
        trainer.check_health()
    (warning,) = [event for event in read_log(tmp_path / LOG) if event["event"] == "warning"]
    assert warning["kind"] == "diverged" and warning["since"] == 16
    assert capfd.readouterr().err.count("16 images, diverged: the loss is no finite number") == 1
    trainer.check_health(False)
    assert not capfd.readouterr().err
    trainer.check_health(True)
    assert "diverged: the loss" in capfd.readouterr().err
    verdicts = [(event["event"], event["health"]) for event in read_log(tmp_path / LOG) if "health" in event]
    assert verdicts == [(event, "diverged: the loss is no finite number") for event in ("stop", "end")]


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "checkpoints").write_text("no folder")
    trainer, _ = trainer_in(tmp_path / "first")
    with pytest.raises(RunError, match=r"after 80 images \(.*\); there is no earlier checkpoint. Is the disk full"):
        trainer.run(lambda: None, fresh=False)

    def full(aside: Path, final: Path) -> None:
        if final.name == f"{96:012d}":
            raise OSError("No space left on device")
        files.move(aside, final)

    monkeypatch.setattr(checkpoints, "move", full)
    trainer, _ = trainer_in(tmp_path)
    with pytest.raises(RunError, match=r"96 images \(No space left on device\); the last whole checkpoint is .*0080"):
        trainer.run(lambda: None, fresh=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"{80:012d}"]


def test_images_per_second_are_of_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    accelerator = make_accelerator(tokenizer_experiment(), tmp_path, torch.device("cpu"))
    counted = Meter()
    counted.restart_clock()
    for seconds, images, speed in ((3.0, 100, 33.33), (2.0, 100, 50.0)):
        clock.now += seconds
        counted.images += images
        counted.add({"loss": torch.tensor(1.0)}, 1.0)
        assert counted.read(accelerator)["images_per_second"] == speed


@dataclass
class Images:
    """A split, and which of its images could not be read."""

    skipped: dict[int, str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 200


def test_unreadable_images_of_all_processes_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = trainer_in(tmp_path)
    images: Any = Images({3: "3.png"})
    alone: Any = trainer.accelerator
    assert meter.count_skipped(None, alone, trainer.progress) == []
    assert meter.count_skipped(images, alone, trainer.progress) == ["3.png"]
    two: Any = SimpleNamespace(num_processes=2)
    others = [{3: "3.png"}, {5: "5.png"}, {7: "7.png"}]
    monkeypatch.setattr(meter, "gather_object", lambda own: [*own, *others[:many]])
    many = 2
    assert meter.count_skipped(images, two, trainer.progress) == ["3.png", "5.png"]
    many = 3
    with pytest.raises(DataError, match="3 of 200 images cannot be read, more than 1%"):
        meter.count_skipped(images, two, trainer.progress)


# ---------------------------------------------------------------------------------------------- signals


@dataclass
class Processes:
    """An accelerator among two processes, of which the other got a signal or not, and takes a time per step."""

    others: float
    pace: float = 0.0
    num_processes: int = 2
    device: str = "cpu"
    asked: int = 0

    def reduce(self, value: Tensor, how: str) -> Tensor:
        assert how == "mean"
        self.asked += 1
        return (value + torch.tensor([float(self.others > 0), self.pace])) / 2


def answers(interrupt: Interrupt, processes: Processes, steps: int) -> list[int]:
    """The steps after which processes ask one another, until they stop."""
    asked = list[int]()
    for step in range(1, steps + 1):
        before = processes.asked
        stop = interrupt.should_stop(processes, step)  # type: ignore[arg-type]
        if processes.asked > before:
            asked.append(step)
        if stop:
            break
    return asked


def test_processes_stop_at_the_same_step_whichever_got_the_signal() -> None:
    for own, others, expected in ((0, signal.SIGINT, signal.SIGTERM), (signal.SIGINT, 0, signal.SIGINT)):
        interrupt = Interrupt()
        processes = Processes(0)
        assert answers(interrupt, processes, ASK_EVERY) == [1] and not interrupt.received
        interrupt.received, processes.others = own, others
        assert not interrupt.should_stop(processes, ASK_EVERY)  # type: ignore[arg-type]
        assert interrupt.should_stop(processes, ASK_EVERY + 1)  # type: ignore[arg-type]
        assert interrupt.received == expected


def test_processes_of_slow_steps_ask_one_another_more_often() -> None:
    assert answers(Interrupt(), Processes(0, pace=2 * ASK_SECONDS / 3.9), 9) == [1, 4, 7]
    assert answers(Interrupt(), Processes(0, pace=20 * ASK_SECONDS), 3) == [1, 2, 3]


def test_a_process_alone_stops_at_once() -> None:
    alone = Processes(0.0, num_processes=1)
    assert Interrupt(signal.SIGINT).should_stop(alone, 1) and not Interrupt().should_stop(alone, 1)  # type: ignore[arg-type]


def test_a_launcher_may_repeat_its_signal(handler: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with catch_signals() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.received == signal.SIGTERM and not handler
    signal.raise_signal(signal.SIGTERM)
    assert handler == [signal.SIGTERM]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_slurm_s_signal_before_time_stops_too_unless_it_is_used_otherwise() -> None:
    with catch_signals() as interrupt:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert interrupt.received == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    other = list[int]()
    signal.signal(signal.SIGUSR1, lambda number, _: other.append(number))
    try:
        with catch_signals() as interrupt:
            signal.raise_signal(signal.SIGUSR1)
        assert other == [signal.SIGUSR1] and not interrupt.received
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.fixture
def handler() -> Iterator[list[int]]:
    """Signals that reach the handler from before."""
    got = list[int]()
    before = {number: signal.signal(number, lambda n, _: got.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    yield got
    for number, each in before.items():
        signal.signal(number, each)


def test_the_first_signal_asks_and_the_second_is_as_ever(handler: list[int]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        handler.clear()
        with catch_signals() as interrupt:
            signal.raise_signal(number)
            assert interrupt.received == number and not handler
            signal.raise_signal(number)
            assert handler == [number]
        with catch_signals():
            pass
        signal.raise_signal(number)
        assert handler == [number, number]


def test_signals_are_left_alone_outside_the_main_thread(handler: list[int]) -> None:
    received = list[int]()

    def elsewhere() -> None:
        with catch_signals() as interrupt:
            received.append(interrupt.received)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    signal.raise_signal(signal.SIGINT)
    assert received == [0] and handler == [signal.SIGINT]
