"""The maps that samples are asked for: those of the held-out images, made when these are read, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from artok.conditioning import control, labels
from artok.config import validate
from artok.data import folder
from artok.data.base import DataConfig
from artok.data.loader import read_rows
from artok.data.splits import DecodedSplit
from artok.evaluation.evaluator import Evaluator
from artok.generators import raster
from artok.layout import TokenLayout
from artok.pipeline import Pipeline
from artok.sampling.settings import Sampling
from artok.tokenizers import pixels
from artok.training.progress import Progress

COUNT = 150


@pytest.fixture(params=["edges", "column"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    if request.param == "edges":
        pytest.importorskip("skimage")
    section: dict[str, Any] = {"edges": {"kind": "edges"}, "column": {"kind": "column", "column": "depth"}}
    for number in range(COUNT + 1):
        image = np.zeros((8, 8, 3), dtype=np.uint8)
        image[number % 5 :, number % 7 :] = number + 60
        place = tmp_path / ("train" if number == COUNT else "test") / "all"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03}.png")
        if request.param == "column":
            Image.fromarray(image[..., 0]).save(place / f"{number:03}.depth.png")
    settings = {"root": tmp_path, "size": 8, "in_memory": False, "control": section[request.param]}
    return validate(folder.Config, settings, "test")


def hearing() -> Pipeline:
    layout = TokenLayout(((2, 2),), 4, 16, (3, 8, 8))
    config = raster.Config.tiny().model_copy(update={"conditioning": (labels.Config(), control.Config.tiny())})
    tokenizer = pixels.Config(patch_size=4).build((3, 8, 8))
    return Pipeline(tokenizer, config.build(layout, 1), ("all",), Sampling(), None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [40, 70, COUNT, COUNT + 20])
def test_a_held_out_image_is_read_once_for_its_features_and_its_map(
    data: DataConfig, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(data, "pixels", "cpu", n, Progress("test", quiet=True))
    read: list[int] = []
    whole = DecodedSplit.read

    def counted(self: DecodedSplit, indices: Any) -> Any:
        read.extend(indices)
        return whole(self, indices)

    monkeypatch.setattr(DecodedSplit, "read", counted)
    pipeline = hearing()
    maps = torch.cat([asked.controls for asked in evaluator.asked(pipeline)])  # type: ignore[misc]
    assert read == list(range(COUNT)) and len(maps) == n
    rows = evaluator.asked_rows()
    again = next(read_rows(evaluator.test_split, data, evaluator.rows.split(COUNT))).control
    assert again is not None and again.flatten(1).any(1).sum() > COUNT / 2
    assert torch.equal(maps, again[rows])
    other = evaluator.of(30)
    fewer = torch.cat([asked.controls for asked in other.asked(pipeline)])  # type: ignore[misc]
    assert torch.equal(fewer, again[other.asked_rows()])
