"""What the tests of metrics share: a tiny CLIP in the place of the published one, which no test downloads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.text_models import tiny_clip

from artok.metrics import clip_score


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP whose weights are large, so that it tells images and texts apart."""
    folder = tiny_clip(tmp_path_factory.mktemp("clip"))
    model = pytest.importorskip("transformers").CLIPModel.from_pretrained(str(folder))
    random = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5, generator=random)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def local_clip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "kind" in request.fixturenames and request.getfixturevalue("kind") == "clip_score":
        config = clip_score.Config(name=str(request.getfixturevalue("clip")))
        monkeypatch.setattr(clip_score.Config, "tiny", lambda: config)
