"""What the tests of metrics share: a tiny CLIP in the place of the published one, which no test downloads."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.text_models import tiny_clip

from artok.metrics import clip_score


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def local_clip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "kind" in request.fixturenames and request.getfixturevalue("kind") == "clip_score":
        config = clip_score.Config(name=str(request.getfixturevalue("clip")))
        monkeypatch.setattr(clip_score.Config, "tiny", lambda: config)
