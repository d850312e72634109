"""Steps whose gradients are not finite or spike: skipped, undone by a return to a checkpoint, or the end of the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import tokenizer_experiment
from helpers.training import assert_same_run, stop_at, weights

from artok.errors import RunError
from artok.training import spikes
from artok.training.experiment import Experiment
from artok.training.log import read_log
from artok.training.loop import Trainer
from artok.training.run import train
from artok.training.settings import Training
from artok.training.spikes import LEAST, SKIPS, Spike, Watch
from artok.training.tasks import TokenizerTask


def experiment(**training: Any) -> Experiment:
    return tokenizer_experiment(training={"checkpoint_every": 32, "ema": 0.9, **training})


def poison(patch: pytest.MonkeyPatch, *places: int, seeds: tuple[int, ...] = (0,)) -> None:
    """Let the images of steps, after so many images, be NaN where the experiment has one of the seeds."""
    losses = TokenizerTask.losses

    def poisoned(self: TokenizerTask, modules: Any, player: str, batch: Any, seen: int) -> Any:
        if seen in places and (self.experiment.seed in seeds or not seeds):
            batch.pixels = torch.full(batch.pixels.shape, math.nan)
        return losses(self, modules, player, batch, seen)

    patch.setattr(TokenizerTask, "losses", poisoned)


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, codes, their statistics and optimizer states are those of a run whose step does nothing."""
    poison(monkeypatch, 48)
    assert train(experiment(on_spike="skip"), tmp_path / "skipped")
    log = read_log(tmp_path / "skipped" / "log.jsonl")
    assert [event["steps_skipped"] for event in log if event["event"] == "train"] == [0, 1, 1, 1]
    assert all(math.isfinite(event["model_loss"]) for event in log if event["event"] == "train")
    monkeypatch.undo()
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch, meter: self.seen == 48 or step(self, batch, meter))
    assert train(experiment(on_spike="skip"), tmp_path / "without")
    for name, tensor in weights(tmp_path / "without").items():
        assert tensor.isfinite().all() and torch.equal(weights(tmp_path / "skipped")[name], tensor), name


def test_a_run_that_skips_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 48, 80)
    assert train(experiment(on_spike="skip", spike=50.0), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        stop_at(patch, 96, MemoryError)
        train(experiment(on_spike="skip", spike=50.0), tmp_path / "stopped")
    assert train(experiment(on_spike="skip", spike=50.0), tmp_path / "stopped")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_goes_back_to_its_last_checkpoint_with_other_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 80)
    settings = experiment(on_spike="roll_back")
    assert train(settings, tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [(event["images"], event["text"]) for event in log if event["event"] == "rollback"] == [
        (64, "the gradient norm of the model is no finite number, after 80 images")
    ]
    assert [event["images"] for event in log if event["event"] == "train"] == [32, 64, 96, 128]
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        stop_at(patch, 128, MemoryError)  # after the checkpoint that knows of the return
        train(settings, tmp_path / "stopped")
    assert train(settings, tmp_path / "stopped")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(weights(tmp_path / "stopped")[name], tensor), name
    monkeypatch.undo()
    assert train(settings, tmp_path / "clean")
    assert any(
        not torch.equal(tensor, weights(tmp_path / "run")[name]) for name, tensor in weights(tmp_path / "clean").items()
    )


@pytest.mark.parametrize(
    ("policy", "places", "words"),
    [
        ("skip", range(0, 128, 16), "no finite number, as in 2 steps in a row before it after 32 images"),
        (
            "roll_back",
            [80],
            "no finite number, though the run went back to a checkpoint 1 times before after 80 images",
        ),
        ("roll_back", [16], "before there was a checkpoint to go back to after 16 images"),
        ("stop", [80], r"model_gradient_norm is no finite number after 96 images.* training.on_spike"),
    ],
)
def test_policies_have_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, places: list[int], words: str
) -> None:
    monkeypatch.setattr("artok.training.loop.ROLLBACKS", 1)
    monkeypatch.setattr(spikes, "SKIPS", 2)
    monkeypatch.setattr("artok.training.loop.SKIPS", 2)
    poison(monkeypatch, *places, seeds=())
    with pytest.raises(RunError, match=words):
        train(experiment(on_spike=policy), tmp_path)


def test_a_spike_is_a_norm_far_above_the_median() -> None:
    watch = Watch(Training(images=1, on_spike="skip", spike=3.0), ["model", "critic"], scaled=False)
    for _ in range(LEAST - 1):
        watch.check("model", 2.0)
    watch.check("model", 100.0)  # too few before it to judge
    watch.check("model", 6.0)
    with pytest.raises(Spike, match=r"model is 6.1, over 3 times the median of the last 21 steps, 2"):
        watch.check("model", 6.1)
    watch.check("critic", 6.1)
    with pytest.raises(Spike, match="critic is no finite number"):
        watch.check("critic", math.inf)
    scaled = Watch(Training(images=1, on_spike="skip"), ["model"], scaled=True)
    scaled.check("model", math.inf)
    assert scaled.norms["model"].isnan().all()
    assert [watch.skip() for _ in range(SKIPS + 1)] == [False] * SKIPS + [True]
