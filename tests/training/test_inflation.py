"""A video tokenizer starts from a trained tokenizer of images, and then computes each frame as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import TOKENIZER, tokenizer_experiment

from artok.config import merge, validate
from artok.saved import load_tokenizer
from artok.tokenizers.conv3d import VideoTokenizer
from artok.training.experiment import Experiment
from artok.training.initial import load_initial
from artok.training.run import train

SHARED = {"patch_size": 1, "quantizer": {"kind": "gaussian", "latent_channels": 4}}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "kl"
    assert train(tokenizer_experiment(tokenizer=SHARED), folder)
    return folder


def video(init: Path | None = None, **tokenizer: Any) -> Experiment:
    section = TOKENIZER["tokenizer"] | SHARED | {"kind": "conv3d", "downsample": [4, 4, 4]} | tokenizer
    data = {"kind": "moving_digits", "size": 16, "frames": 5, "train": 64, "test": 16}
    plain = {key: value for key, value in TOKENIZER.items() if key not in ("data", "tokenizer")}
    changes = {"name": "video", "data": data, "tokenizer": section, "init": str(init) if init else None}
    return validate(Experiment, merge(plain, changes), "test")


@torch.no_grad()
@pytest.mark.parametrize("frame_patch", [1, 2, 4])
def test_a_still_clip_is_its_image_and_every_token_frame_one_of_images(images: Path, frame_patch: int) -> None:
    of_images, _ = load_tokenizer(images)
    levels = {"channel_multipliers": [1, 1, 1]}  # time is halved beside the sides, or before them by the patch
    experiment = video(frame_patch=frame_patch, **levels)
    torch.manual_seed(1)
    built = experiment.tokenizer.build(experiment.image)  # type: ignore[union-attr]
    assert isinstance(built, VideoTokenizer)
    said: list[str] = []
    load_initial(built, str(images), None, None, said.append)  # type: ignore[arg-type]
    total = sum(tensor.numel() for tensor in built.state_dict().values())
    assert said[0] == f"starts from {images}: {total:,} of {total:,} numbers loaded"
    assert said[1].startswith("inflated from images: encoder.conv_in.weight") and len(said) == 2
    clip = torch.rand(2, 1, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    built.eval()
    tokens = built.encode(clip).values.unflatten(1, (3, 16))
    for place, frame in enumerate((0, 4, 8)):  # a group is seen by its last frame
        torch.testing.assert_close(tokens[:, place], of_images.encode(clip[:, :, frame]).values, rtol=1e-4, atol=1e-4)
    decoded = built.decode(built.encode(clip))
    for frame, seen in enumerate((0, 4, 4, 4, 4, 8, 8, 8, 8)):
        image = of_images.decode(of_images.encode(clip[:, :, seen]))
        torch.testing.assert_close(decoded[:, :, frame], image, rtol=1e-4, atol=1e-4)


def test_a_training_starts_from_a_run_of_images(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(video(images), tmp_path / "video")
    assert "inflated from images" in capsys.readouterr().err
    loaded, _ = load_tokenizer(tmp_path / "video")
    assert loaded.layout.image == (1, 5, 16, 16) and loaded.layout.grid == (2, 4, 4)
    assert {path.suffix for path in (tmp_path / "video" / "samples").iterdir()} == {".gif", ".png"}
