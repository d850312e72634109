"""Comparing two runs, and stopping a training on the way."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from artok.training.experiment import Experiment
from artok.training.log import read_log
from artok.training.loop import Trainer
from artok.training.run import train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, optimizer state and logged figures, to the bit."""
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name
    last = sorted(path.name for path in (one / "checkpoints").iterdir())[-1]
    states = [torch.load(run / "checkpoints" / last / "optimizer.bin", weights_only=True) for run in (one, other)]
    for index, state in states[0]["state"].items():
        assert torch.equal(state["exp_avg"], states[1]["state"][index]["exp_avg"])
    timed = {"time", "images_per_second", "core_seconds"}
    logs = [
        [{k: v for k, v in event.items() if k not in timed} for event in read_log(run / "log.jsonl")]
        for run in (one, other)
    ]
    figures = [
        [event for event in log if event["event"] in ("train", "validation", "monitor", "warning")] for log in logs
    ]
    assert figures[0] == figures[1]


def train_in_two(experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch, stop: int = 96) -> None:
    """Train an experiment that is stopped by SIGTERM after `stop` images and resumed."""
    with monkeypatch.context() as patch:
        stop_at(patch, stop, signal.SIGTERM)
        assert train(experiment, folder) is False
    assert train(experiment, folder)


def stop_at(monkeypatch: pytest.MonkeyPatch, images: int, how: type[BaseException] | int) -> None:
    """Let a training in this process be interrupted once it has seen so many images."""
    step = Trainer.step

    def until(self: Trainer, batch: Any, meter: Any) -> None:
        step(self, batch, meter)
        if self.seen + self.training.global_batch == images:
            if isinstance(how, int):
                signal.raise_signal(how)
            else:
                raise how

    monkeypatch.setattr(Trainer, "step", until)
