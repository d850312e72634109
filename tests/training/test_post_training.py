"""Training of a tokenizer's decoder alone, on perturbed tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import generator_experiment, tokenizer_experiment

from artok.errors import CheckpointError, ConfigError
from artok.layout import TokenLayout, Tokens
from artok.noise import Noise
from artok.pipeline import Pipeline
from artok.saved import load_tokenizer
from artok.training.experiment import PostTraining
from artok.training.post_training import DecoderTask
from artok.training.run import train

TRAINED = ("from_quantizer.", "decoder.")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert train(tokenizer_experiment(), folder / "vq")
    section: dict[str, Any] = {"init": str(folder / "vq"), "post_training": {"share": 0.5, "neighbours": 4}}
    assert train(tokenizer_experiment(name="robust", **section), folder / "robust")
    assert train(generator_experiment(str(folder / "vq"), training={"images": 64}), folder / "raster")
    return folder


def test_only_the_decoder_moves_and_images_keep_their_tokens(runs: Path) -> None:
    before, after = (load_tokenizer(runs / name)[0] for name in ("vq", "robust"))
    new = after.state_dict()
    for name, tensor in before.state_dict().items():
        if name.startswith(TRAINED):
            assert not torch.equal(new[name], tensor) or not tensor.any()
        else:
            assert torch.equal(new[name], tensor), name
    images = torch.rand(16, *before.layout.image, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(before.encode(images).values, after.encode(images).values)


def test_a_generator_of_the_tokenizer_takes_the_new_decoder_and_no_other(runs: Path, tmp_path: Path) -> None:
    plain = Pipeline.from_pretrained(runs / "raster")
    robust = Pipeline.from_pretrained(runs / "raster", decoder=str(runs / "robust"))
    assert not torch.equal(plain([1, 2]), robust([1, 2]))
    robust.save_pretrained(tmp_path / "saved")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "saved")([1, 2]), robust([1, 2]))
    assert train(tokenizer_experiment(seed=7), tmp_path / "other")
    with pytest.raises(CheckpointError, match="not the one that the generator was trained on"):
        Pipeline.from_pretrained(runs / "raster", decoder=str(tmp_path / "other"))


def test_a_decoder_of_another_kind_is_trained_for_the_same_codes(runs: Path, tmp_path: Path) -> None:
    section: dict[str, Any] = {"tokenizer": {"diffusion_decoder": {"depth": 1, "width": 16, "heads": 2, "steps": 2}}}
    section |= {"init": str(runs / "vq"), "post_training": {"share": 0.0}}
    assert train(tokenizer_experiment(name="denoising", **section), tmp_path / "run")
    before, after = (load_tokenizer(folder)[0] for folder in (runs / "vq", tmp_path / "run"))
    images = torch.rand(16, *before.layout.image, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(before.encode(images).values, after.encode(images).values)
    pipeline = Pipeline.from_pretrained(runs / "raster", decoder=str(tmp_path / "run"))
    assert torch.equal(pipeline([1, 2]), pipeline([1, 2]))
    section["tokenizer"] = section["tokenizer"] | {"quantizer": {"codebook_size": 8}}
    with pytest.raises(CheckpointError, match="training leaves this weight as it is"):
        train(tokenizer_experiment(name="other", **section), tmp_path / "other")


def task(settings: PostTraining) -> DecoderTask:
    made = object.__new__(DecoderTask)
    made.settings, made.near, made.device = settings, None, torch.device("cpu")
    return made


def test_each_image_has_its_own_share_of_wrong_codes(runs: Path) -> None:
    made, count = task(PostTraining(share=0.6, neighbours=4)), 2000
    made.tokenizer = load_tokenizer(runs / "vq")[0]
    layout = made.tokenizer.layout
    tokens = Tokens(torch.randint(0, layout.vocab or 0, (count, *layout.value_shape())), layout)
    wrong = (made.perturb(tokens, Noise(0, torch.arange(count))).values != tokens.values).float().mean((1, 2))
    assert float(wrong.mean()) == pytest.approx(0.3, abs=0.02)  # 4 deviations of a mean of shares between 0 and .6
    assert float((wrong == 0).float().mean()) > 0.02
    assert float((wrong > 0.5).float().mean()) > 0.02


def test_continuous_tokens_get_noise_of_their_own_deviation() -> None:
    made, count = task(PostTraining(noise=0.8)), 2000
    layout = TokenLayout(((4, 4),), 8, None, (1, 16, 16))
    added = made.perturb(Tokens(torch.ones(count, 16, 8), layout), Noise(0, torch.arange(count))).values - 1
    deviations = added.flatten(1).std(1)
    assert float(deviations.mean()) == pytest.approx(0.4, abs=0.025)
    assert float(deviations.min()) < 0.05
    assert 0.7 < float(deviations.max()) < 0.95


def test_it_needs_a_trained_tokenizer_and_no_generator() -> None:
    for changes in ({"post_training": {}}, {"post_training": {}, "init": None}):
        with pytest.raises(ConfigError, match="name its run in 'init'"):
            tokenizer_experiment(**changes)
    with pytest.raises(ConfigError, match="no 'generator'"):
        generator_experiment("runs/vq", post_training={}, init="runs/vq")
