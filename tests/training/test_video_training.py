"""Video tokenizers are trained, planned, measured at any length and shown like those of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import TOKENIZER
from PIL import Image

from artok.adversarial.critic import CriticConfig
from artok.config import load, merge, validate
from artok.errors import ConfigError, DataError
from artok.evaluation.evaluate import evaluate
from artok.evaluation.reconstruct import reconstruct
from artok.images import frames_of, save_gif, to_pil
from artok.losses import perceptual
from artok.losses.base import Setting
from artok.metrics import cost
from artok.metrics.extractors import classifier
from artok.noise import Noise
from artok.planning.meta_model import build
from artok.planning.training_cost import parameters, training_flops
from artok.saved import load_tokenizer
from artok.tokenizers import conv3d
from artok.training.experiment import Experiment
from artok.training.progress import Progress
from artok.training.run import build_task, load_frozen_tokenizer, make_accelerator, train

CRITIC = {"discriminator": {"kind": "patch", "base_channels": 8, "layers": 1, "norm": "group"}}


def experiment(**changes: Any) -> Experiment:
    section = {key: value for key, value in TOKENIZER.items() if key not in ("data", "tokenizer")}
    section |= {"name": "clips", "tokenizer": conv3d.Config.tiny().model_dump(mode="json")}
    section["data"] = {"kind": "moving_digits", "size": 16, "frames": 5, "train": 64, "test": 32}
    return validate(Experiment, merge(section, changes), "test")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video") / "clips"
    assert train(experiment(training={"images": 64}), folder)
    return folder


def clips(count: int, frames: int = 5) -> torch.Tensor:
    return torch.rand(count, 1, frames, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1


# ---------------------------------------------------------------------------------------------- losses


def test_a_critic_judges_clips_frame_by_frame_and_augments_the_frames_of_one_alike() -> None:
    torch.manual_seed(0)
    section = CRITIC | {"augment": ["translation", "cutout"], "r1": 1.0}
    critic = validate(CriticConfig, section, "critic").build((1, 5, 16, 16), 0)
    real, fake, noise = clips(3), clips(4)[:3], Noise(0, torch.arange(3))
    frames = [frames_of(each) for each in (real, fake)]
    assert torch.equal(frames[0][5], real[1, :, 0])
    of_frames = Noise(0, torch.arange(3).repeat_interleave(5))
    expected = critic.generator_loss(*frames, None, of_frames)
    assert torch.equal(critic.generator_loss(real, fake, None, noise), expected)
    whole = critic(real, fake, None, Noise(0, torch.arange(3)), 0, 0.0).losses
    single = critic(*frames, None, Noise(0, torch.arange(3).repeat_interleave(5)), 0, 0.0).losses
    assert whole.keys() == single.keys() == {"critic", "r1"}
    assert all(torch.equal(whole[name], single[name]) for name in whole)


def test_a_perceptual_loss_is_the_mean_over_frames() -> None:
    loss = perceptual.Config().build(Setting((1, 5, 16, 16), torch.device("cpu"), None))
    assert isinstance(loss, perceptual.Perceptual)
    loss.distance = perceptual.FeatureDistance(lambda x, layers: [x.repeat(1, 3, 1, 1) + 2, x.exp()], None)
    real, fake = clips(3), clips(4)[:3]
    by_frame = [loss(fake[:, :, frame], real[:, :, frame])["perceptual"] for frame in range(5)]
    torch.testing.assert_close(loss(fake, real)["perceptual"], torch.stack(by_frame).mean())


def test_features_of_frames_are_learned_from_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "SEEN_AT_LEAST", 128)
    monkeypatch.setattr(classifier, "EPOCHS", 1)
    losses = [{"kind": "reconstruction"}, {"kind": "perceptual"}, {"kind": "adversarial", "critic": CRITIC}]
    settings = experiment(losses=losses)
    accelerator = make_accelerator(settings, tmp_path, torch.device("cpu"))
    task = build_task(settings, tmp_path, accelerator, Progress("test", quiet=True))
    batch = next(task.batches(0, 0, 1))
    model = task.losses(task.players, "model", batch, 0).losses
    assert {"l1", "perceptual", "adversarial"} <= model.keys()
    torch.stack(list(model.values())).sum().backward()
    assert "critic" in task.losses(task.players, "critic", batch, 0).losses
    counted = build(settings)
    assert counted.tokenizer is not None and parameters(settings) == cost.parameters(task.players["model"])
    assert training_flops(settings) > 0


# ---------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("name", ["moving_digits/kl", "moving_digits/fsq"])
def test_a_plan_counts_what_the_tokenizer_computes(name: str) -> None:
    settings = load(Experiment, name)
    torch.manual_seed(0)
    tokenizer = settings.tokenizer.build(settings.image)  # type: ignore[union-attr]
    images = torch.zeros(2, *settings.image)

    def step() -> None:
        result = tokenizer(images)
        (result.images.square().mean() + sum(result.losses.values(), torch.zeros(()))).backward()

    assert training_flops(settings) == pytest.approx(cost.flops(step) / 2, rel=0.01)
    assert parameters(settings) == cost.parameters(tokenizer)


# ---------------------------------------------------------------------------------------------- other lengths


def test_a_tokenizer_is_measured_at_another_length(run: Path) -> None:
    found = {}
    for frames in (5, 9):
        results = evaluate(str(run), 16, "pixels", [f"data.frames={frames}"], "cpu", Progress("test", quiet=True))
        found[frames] = {measurement.name: measurement.value for measurement in results.measurements}
        assert results.cost["tokens_per_image"] == 16 * (2 if frames == 5 else 3)
    assert found[5]["psnr_db"] > 0 and found[9]["psnr_db"] > 0 and found[5]["psnr_db"] != found[9]["psnr_db"]
    with pytest.raises(ConfigError, match="use 5 or 9 frames"):
        evaluate(str(run), 16, "pixels", ["data.frames=7"], "cpu", Progress("test", quiet=True))


def test_a_generator_may_be_trained_on_another_length_than_its_tokenizer(run: Path) -> None:
    generator = {"kind": "raster", "depth": 1, "width": 8, "heads": 1}
    settings = experiment(tokenizer=str(run), generator=generator, data={"frames": 9})
    assert load_frozen_tokenizer(settings)[0].layout.grid == (3, 4, 4)
    with pytest.raises(ConfigError, match="trained on images of"):
        load_frozen_tokenizer(experiment(tokenizer=str(run), generator=generator, data={"size": 32}))


def test_a_video_file_is_reconstructed_as_rows_of_frames_and_moving(run: Path, tmp_path: Path) -> None:
    tokenizer, _ = load_tokenizer(run)
    frames = clips(1, 6)[0].unbind(1)
    save_gif([to_pil(frame) for frame in frames], tmp_path / "clip.gif")
    (found,) = reconstruct(tokenizer, [tmp_path / "clip.gif"], tmp_path / "out")
    assert found.psnr > 0
    with Image.open(tmp_path / "out" / "clip.png") as sheet:
        assert sheet.size == (5 * 65 - 1, 3 * 65 - 1)
    with Image.open(tmp_path / "out" / "clip.gif") as moving:
        assert moving.n_frames == 5  # type: ignore[attr-defined]
    save_gif([to_pil(frame) for frame in frames[:3]], tmp_path / "short.gif")
    with pytest.raises(DataError, match=r"short\.gif cannot be read as a clip of 5 frames \(it has 3 frames"):
        reconstruct(tokenizer, [tmp_path / "short.gif"], tmp_path / "out")
    with pytest.raises(DataError, match="there is no video"):
        reconstruct(tokenizer, [tmp_path / "none.gif"], tmp_path / "out")
