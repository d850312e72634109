"""What long runs need: room that is checked before they start, their best weights, signs of life, exact repetition."""

from __future__ import annotations

import os
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment
from helpers.training import assert_same_run, stop_at, weights
from safetensors.torch import load_file

from artok.discard import check_discardable
from artok.errors import ConfigError, RunError, describe_failure
from artok.pipeline import Pipeline
from artok.saved import load_tokenizer
from artok.training import log as logs
from artok.training import needs
from artok.training.log import read_log
from artok.training.loop import Trainer
from artok.training.needs import advise_on_memory, checkpoint_bytes, disk_bytes
from artok.training.run import train
from artok.training.settings import Training
from artok.training.tasks import TokenizerTask

Usage = namedtuple("Usage", "total used free")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_needs_are_what_a_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict[str, Any]()

    def note(modules: Any, training: Training, folder: Path, device: torch.device) -> str:
        found.update(one=checkpoint_bytes(modules, training), all=disk_bytes(modules, training))
        return ""

    monkeypatch.setattr("artok.training.run.check_needs", note)
    given = {"ema": 0.9, "checkpoint_every": 32, "snapshot_every": 32, "keep_best": "max psnr"}
    assert train(tokenizer_experiment(training=given, tokenizer={"base_channels": 32}), tmp_path)
    states = list((tmp_path / "checkpoints").iterdir())
    assert len(states) == 2 and size(states[0]) == pytest.approx(found["one"], rel=0.1)  # beside names and headers
    whole = sum(size(tmp_path / name) for name in ("checkpoints", "snapshots", "best"))
    whole += (tmp_path / "model.safetensors").stat().st_size + size(states[0])  # the one that is being written
    assert whole == pytest.approx(found["all"], rel=0.1)


def test_a_run_that_has_no_room_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tokenizer_experiment(training={"checkpoint_every": 32})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**5, 10**5))
        with pytest.raises(
            RunError, match=r"needs about .* MB on the disk of .*0\.1 MB are free; .*training.keep_last"
        ):
            train(experiment, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr(needs, "available_memory", lambda: 1000)
        with pytest.raises(RunError, match=r"optimizer states need .* MB of memory on cpu, and 0.0 MB are free"):
            train(experiment, tmp_path / "run")
    assert train(experiment, tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))
    assert train(experiment, tmp_path / "run")  # it is finished


# ---------------------------------------------------------------------------------------------- memory

ADVICE = [
    ({"global_batch": 64}, 1, r"gradient_accumulation_steps=2 or training.gradient_checkpointing=true"),
    ({"global_batch": 12, "gradient_accumulation_steps": 2}, 2, r"gradient_accumulation_steps=6 or"),
    ({"global_batch": 2, "gradient_accumulation_steps": 1}, 2, r"again with training.gradient_checkpointing=true"),
    ({"global_batch": 2, "gradient_checkpointing": True}, 2, r"use a smaller model"),
]


@pytest.mark.parametrize(("training", "processes", "words"), ADVICE)
def test_what_to_lower_where_memory_ends(training: dict[str, Any], processes: int, words: str) -> None:
    advice = advise_on_memory(Training(images=100, **training), processes)
    assert re.search(words, advice), advice


def test_a_step_that_runs_out_of_memory_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemory(RuntimeError):
        """As torch raises it, for a GPU and for a CPU."""

    def full(self: Trainer, batch: Any, meter: Any) -> None:
        raise OutOfMemory("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(RunError, match=r"more memory than cpu has; .*gradient_accumulation_steps=2"):
        train(tokenizer_experiment(), tmp_path)


# ---------------------------------------------------------------------------------------------- the best weights


def psnr_of(patch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Let validation give made-up values, by images seen."""
    seen, step, validate = [0], Trainer.step, TokenizerTask.validate

    def count(self: Trainer, batch: Any, meter: Any) -> None:
        step(self, batch, meter)
        seen[0] = self.seen + self.training.global_batch

    patch.setattr(Trainer, "step", count)
    patch.setattr(TokenizerTask, "validate", lambda self: validate(self) | {"psnr": values[seen[0]]})


@pytest.mark.parametrize(("wish", "at"), [("max psnr", 64), ("min psnr", 96)])
def test_the_best_weights_are_a_model_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str, at: int
) -> None:
    given = {"keep_best": wish, "validate_every": 32, "snapshot_every": 32, "checkpoint_every": 32}
    experiment = tokenizer_experiment(training=given)
    with monkeypatch.context() as patch:
        psnr_of(patch, {32: 9.0, 64: 10.0, 96: 8.0, 128: 9.5})
        assert train(experiment, tmp_path / "whole")
        with patch.context() as stopped, pytest.raises(MemoryError):
            stop_at(stopped, 112, MemoryError)
            train(experiment, tmp_path / "run")
        assert train(experiment, tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    for run in (tmp_path / "whole", tmp_path / "run"):
        best, snapshot = weights(run / "best"), weights_at(run, at)
        assert all(torch.equal(best[name], tensor) for name, tensor in snapshot.items())
        assert [event["images"] for event in read_log(run / "log.jsonl") if event["event"] == "best"][-1] == at
    load_tokenizer(tmp_path / "run" / "best")
    check_discardable(tmp_path / "run")


def weights_at(run: Path, images: int) -> dict[str, torch.Tensor]:
    return load_file(run / "snapshots" / f"{images:012d}.safetensors")


def test_the_best_weights_of_a_generator_come_with_their_tokenizer(tmp_path: Path) -> None:
    assert train(tokenizer_experiment(), tmp_path / "vq")
    given = {"keep_best": "min nll_held_out", "images": 64, "monitor_images": 0}
    assert train(generator_experiment(str(tmp_path / "vq"), training=given), tmp_path / "run")
    assert Pipeline.from_pretrained(tmp_path / "run" / "best")([1]).shape == (1, 1, 16, 16)


def test_a_metric_that_nothing_measures_is_named_at_the_first_validation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing measures 'psnrs'; did you mean 'psnr'"):
        train(tokenizer_experiment(training={"keep_best": "max psnrs"}), tmp_path)
    assert read_log(tmp_path / "log.jsonl")[-1]["images"] == 64


# ---------------------------------------------------------------------------------------------- the rest


def test_a_log_without_events_for_long_gets_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "HEARTBEAT", 0.0)
    assert train(tokenizer_experiment(training={"log_every": 64}), tmp_path / "often")
    alive = [event["images"] for event in read_log(tmp_path / "often" / "log.jsonl") if event["event"] == "alive"]
    assert alive == list(range(16, 144, 16))
    monkeypatch.undo()
    assert train(tokenizer_experiment(training={"log_every": 64}), tmp_path / "run")
    assert "alive" not in (tmp_path / "run" / "log.jsonl").read_text()
    assert_same_run(tmp_path / "run", tmp_path / "often")


def test_deterministic_refuses_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, states = Trainer.step, list[bool]()

    def noted(self: Trainer, batch: Any, meter: Any) -> None:
        states.append(torch.are_deterministic_algorithms_enabled())
        step(self, batch, meter)

    monkeypatch.setattr(Trainer, "step", noted)
    short = {"images": 16, "deterministic": True}
    assert train(tokenizer_experiment(training=short), tmp_path)
    assert states == [True] and not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    said = describe_failure(RuntimeError("put_ does not have a deterministic implementation, but you set ..."))
    assert said is not None and said.startswith("put_ does not have a deterministic implementation; leave training.det")


def test_a_link_to_itself_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    error = RuntimeError(
        f"Symlink loop from {str(tmp_path / 'link')!r}"
    )  # as Path.resolve raises it before Python 3.13
    assert str(describe_failure(error)).endswith("a link leads to itself; remove it")
