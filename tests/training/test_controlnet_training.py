"""A ControlNet in training: from a run, on edges, resumed, sampled by itself, and without maps the run it steers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import artok
from helpers.models import TOKENIZER
from helpers.training import assert_same_run, train_in_two, weights
from PIL import Image

from artok.config import merge, validate
from artok.data import shapes
from artok.errors import CheckpointError, ConfigError
from artok.images import to_pil
from artok.pipeline import Pipeline
from artok.training.experiment import Experiment
from artok.training.run import train

pytest.importorskip("skimage")

DATA = {"kind": "shapes", "size": 16, "train": 64, "test": 24}
BASE = merge(
    TOKENIZER | {"data": DATA},
    {
        "tokenizer": {"quantizer": {"kind": "gaussian"}},
        "training": {"images": 64, "checkpoint_every": 32, "validate_every": 64, "preview_every": 64, "ema": 0.9},
    },
)
GENERATOR: dict[str, Any] = {
    "kind": "diffusion",
    "network": {"kind": "dit", "depth": 2, "width": 16, "heads": 2, "patch_size": 1},
    "diffusion": {"schedule": "straight", "prediction_type": "velocity", "steps": 2},
}
STEERED = {"controlnet": True, "conditioning": [{"kind": "labels"}, {"kind": "control"}]}


def experiment(tokenizer: Path, **changes: Any) -> Experiment:
    section = BASE | {"name": "tiny-dit", "tokenizer": str(tokenizer), "generator": GENERATOR}
    return validate(Experiment, merge(section, changes), "test")


def steering(tokenizer: Path, base: Path, **changes: Any) -> Experiment:
    section = {"data": {"control": {"kind": "edges"}}, "generator": STEERED, "init": str(base)}
    return experiment(tokenizer, **merge(section, changes))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "kl"
    assert train(validate(Experiment, BASE, "test"), folder)
    return folder


@pytest.fixture(scope="module")
def base(tokenizer: Path) -> Path:
    folder = tokenizer.parent / "dit"
    assert train(experiment(tokenizer), folder)
    return folder


@pytest.fixture(scope="module")
def run(tokenizer: Path, base: Path) -> Path:
    folder = tokenizer.parent / "controlnet"
    assert train(steering(tokenizer, base), folder)
    return folder


def test_the_run_holds_the_model_that_it_steers_unchanged(run: Path, base: Path) -> None:
    own, there = weights(run), weights(base)
    assert all(torch.equal(own[name], tensor) for name, tensor in there.items())
    assert any(own[name].any() for name in own if ".controlnet.zeros." in name)


def test_without_a_map_the_samples_are_those_of_the_base(run: Path, base: Path) -> None:
    steered, alone = Pipeline.from_pretrained(run), Pipeline.from_pretrained(base)
    maps = (torch.rand(2, 1, 16, 16) > 0.5).byte() * 255
    plain = alone([0, 1], seed=4)
    assert torch.equal(steered([0, 1], seed=4), plain)
    assert not torch.equal(steered([0, 1], control=maps, seed=4), plain)


def test_it_is_sampled_after_its_base_is_gone(
    run: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = base.rename(base.with_name("away"))
    try:
        picture = tmp_path / "picture.png"
        to_pil(shapes.Config(size=16).open("test").read([0]).images[0].float() / 127.5 - 1).save(picture)
        assert artok(monkeypatch, "sample", run, "--control", picture, "-n", 2, "--out", tmp_path / "out") == 0
    finally:
        aside.rename(base)
    assert len(list((tmp_path / "out").glob("0*.png"))) == 2
    assert Image.open(tmp_path / "out" / "grid.png").width > 2 * 64


def test_a_stopped_run_goes_on_to_the_same_weights(
    run: Path, tokenizer: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_two(steering(tokenizer, base), tmp_path / "run", monkeypatch, stop=32)
    assert_same_run(tmp_path / "run", run)


def test_the_optimizer_and_the_averages_hold_what_is_trained(run: Path, base: Path) -> None:
    steered = Pipeline.from_pretrained(run).generator
    trained = sum(weight.numel() for weight in steered.parameters())
    trained -= sum(weight.numel() for weight in Pipeline.from_pretrained(base).generator.parameters())
    last = sorted((run / "checkpoints").iterdir())[-1]
    state = torch.load(last / "optimizer.bin", weights_only=True)["state"]
    assert sum(each["exp_avg"].numel() for each in state.values()) == trained


def test_mistakes_are_said_before_anything_is_written(tokenizer: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="controlnet steers a trained model: name its run in 'init'"):
        steering(tokenizer, base, init=None)
    with pytest.raises(ConfigError, match="the data give none; say what its maps are"):
        steering(tokenizer, base, data={"control": None})
    other = steering(tokenizer, base, generator={"network": {"depth": 1}})
    with pytest.raises(CheckpointError, match="has another section network"):
        train(other, tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a tokenizer"):
        train(steering(tokenizer, tokenizer), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
