"""Codebooks in training: parts of a step, averaged weights, figures in the log, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import tokenizer_experiment
from helpers.training import assert_same_run, train_in_two
from safetensors.torch import load_file

from artok.quantizers.base import Replacement
from artok.quantizers.codebook import Codebook
from artok.training.ema import Ema
from artok.training.log import read_log
from artok.training.run import train

# Adam divides a gradient by its own size, so one that is zero but for roundings would move its weight by the whole rate
STEADY = {"optimizer": {"eps": 1e-3}, "critic": {"eps": 1e-3}}
KINDS: dict[str, dict[str, Any]] = {
    "vq": {"dead_code_threshold": 0.5, "decay": 0.5, "kmeans_init": True},
    "vq gradient": {"dead_code_threshold": 0.5, "decay": 0.5, "update": "gradient"},
    "multiscale": {"kind": "multiscale", "dead_code_threshold": 0.5, "decay": 0.5, "scale_dropout": 0.3},
    "gumbel": {"kind": "gumbel"},
    "gaussian": {"kind": "gaussian", "latent_channels": 4},
}


def trained(folder: Path, quantizer: dict[str, Any], **training: Any) -> dict[str, torch.Tensor]:
    experiment = tokenizer_experiment(tokenizer={"quantizer": quantizer}, training=STEADY | {"ema": 0.9} | training)
    assert train(experiment, folder)
    return load_file(folder / "model.safetensors")


def logged(folder: Path, *names: str) -> list[list[float]]:
    return [[event[name] for name in names] for event in read_log(folder / "log.jsonl") if event["event"] == "train"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_in_parts_is_a_training(kind: str, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", KINDS[kind])
    parts = trained(tmp_path / "parts", KINDS[kind], gradient_accumulation_steps=4)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)
    names = ("usage", "perplexity", "model_loss") if kind != "gaussian" else ("kl_nats", "model_loss")
    figures = logged(tmp_path / "whole", *names)
    assert len(figures) == 4
    for found, wanted in zip(logged(tmp_path / "parts", *names), figures, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_averaged_weights_hold_codes_that_stood_there(
    update: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The averages of rows go by the same rule as other weights, but start anew with each restart."""
    tables, restarts = list[torch.Tensor](), list[torch.Tensor]()
    settle = Codebook.restart_dead_codes

    def watched(self: Codebook, points: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        restarts.append(settle(self, points, real))
        tables.append(self.table.detach()[0].clone())
        return restarts[-1]

    monkeypatch.setattr(Codebook, "restart_dead_codes", watched)
    saved = trained(tmp_path, {"dead_code_threshold": 0.5, "decay": 0.5, "update": update, "codebook_size": 64})
    experiment = tokenizer_experiment(tokenizer={"quantizer": {"codebook_size": 64, "update": update}})
    torch.manual_seed(experiment.seed)
    average = experiment.tokenizer.build(experiment.image).quantizer.levels[0].table.detach()[0].clone()
    for step, (table, replaced) in enumerate(zip(tables, restarts, strict=True)):
        average.lerp_(table, 1 - min(0.9, (1 + step) / (10 + step)))
        average[replaced] = table[replaced]
    assert sum(int(each.sum()) for each in restarts) > 20
    assert not torch.equal(saved["quantizer.levels.0.table"][0], tables[-1])
    torch.testing.assert_close(saved["quantizer.levels.0.table"][0], average, atol=1e-6, rtol=1e-5)


def test_averages_of_a_checkpoint_without_tables_start_from_the_tables() -> None:
    model = tokenizer_experiment().tokenizer.build((1, 16, 16))
    earlier = {str(index): torch.zeros_like(each) for index, each in enumerate(model.parameters())}
    ema = Ema(model, 0.9)
    table = model.quantizer.levels[0].table
    table.fill_(3.0)
    ema.load_state_dict(earlier)
    assert torch.equal(ema.shadow[-1], table)
    assert all(not each.any() for each in ema.shadow[:-1])
    ema.restart([Replacement(table, torch.arange(16) < 2)])
    assert ema.state_dict().keys() == {str(index) for index in range(len(earlier) + 1)}


@pytest.mark.parametrize("kind", ["vq", "multiscale"])
def test_usage_goes_on_after_a_stop(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tokenizer_experiment(tokenizer={"quantizer": KINDS[kind] | {"codebook_size": 64}})
    assert train(experiment, tmp_path / "whole")
    train_in_two(experiment, tmp_path / "stopped", monkeypatch)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    for checkpoint in (tmp_path / "stopped" / "checkpoints").glob("0*"):
        (checkpoint / "windows.safetensors").unlink()  # as an earlier version leaves it
    longer = experiment.model_copy(update={"training": experiment.training.model_copy(update={"images": 144})})
    assert train(longer, tmp_path / "stopped", extend=True)


def test_what_starts_from_data_sees_the_first_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = list[tuple[int, float]]()
    start = Codebook.start_from_kmeans

    def watched(self: Codebook, points: torch.Tensor, seed: int, steps: float) -> None:
        starts.append((len(points), steps))
        start(self, points, seed, steps)

    monkeypatch.setattr(Codebook, "start_from_kmeans", watched)
    experiment = tokenizer_experiment(tokenizer={"quantizer": KINDS["vq"] | {"codebook_size": 64}})
    train_in_two(experiment, tmp_path, monkeypatch)
    assert starts == [(512, 2)]  # 8 latents per code, 16 per image, 16 images per step
