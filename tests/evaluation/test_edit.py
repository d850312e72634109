"""Editing: what is known comes back to the bit, what is hidden is never read, and wrong masks are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import artok
from helpers.models import generator_experiment, tokenizer_experiment
from PIL import Image
from torch import Tensor

from artok.data import digits
from artok.errors import ConfigError
from artok.images import from_uint8, to_pil
from artok.masks import name_mask
from artok.pipeline import Pipeline
from artok.training.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert train(tokenizer_experiment(), folder / "vq")
    assert train(generator_experiment(str(folder / "vq")), folder / "raster")
    return folder / "raster"


@pytest.fixture
def pipeline(run: Path) -> Pipeline:
    return Pipeline.from_pretrained(run)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return from_uint8(digits.Config(size=16).open("test").read([0, 1]).images)


def test_known_pixels_come_back_and_hidden_ones_are_never_read(pipeline: Pipeline, images: Tensor) -> None:
    mask = name_mask("left", pipeline.tokenizer.layout)[0]
    made = pipeline.edit(images, mask, [3, 5], n=3, seed=2)
    assert made.shape == (6, 1, 16, 16)
    known = ~mask.expand(6, 1, 16, 16)
    assert torch.equal(made[known], images.repeat_interleave(3, 0)[known])
    blank = torch.where(mask, 0.7, images)
    assert torch.equal(pipeline.edit(blank, mask, [3, 5], n=3, seed=2), made)
    assert not torch.equal(pipeline.edit(images, mask, [3, 5], n=3, seed=3), made)


def test_an_edit_does_not_depend_on_the_batch(pipeline: Pipeline, images: Tensor) -> None:
    mask = torch.stack([name_mask(name, pipeline.tokenizer.layout)[0] for name in ("top", "right")])
    whole = pipeline.edit(images, mask, n=3)
    torch.testing.assert_close(pipeline.edit(images, mask, n=3, batch=2), whole, rtol=0, atol=1e-4)


def test_feathering_changes_only_a_border(pipeline: Pipeline, images: Tensor) -> None:
    mask = name_mask("left", pipeline.tokenizer.layout)[0]
    plain, soft = pipeline.edit(images, mask, 1), pipeline.edit(images, mask, 1, feather=2)
    assert torch.equal(soft[..., 11:], images[..., 11:]) and torch.equal(soft[..., :8], plain[..., :8])
    assert not torch.equal(soft[..., 8:10], plain[..., 8:10])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(16, 16, dtype=torch.bool), "hides nothing"),
        (torch.ones(16, 16, dtype=torch.bool), "hides the whole image"),
        (torch.zeros(8, 8, dtype=torch.bool), "does not go with"),
        (torch.zeros(16, 16), "True where"),
        (torch.eye(16, dtype=torch.bool) | torch.eye(16, dtype=torch.bool).roll(8, 0), "cell of every token|none is"),
    ],
)
def test_wrong_masks_are_refused(pipeline: Pipeline, images: Tensor, mask: Tensor, message: str) -> None:
    if "cell" in message:  # a hidden pixel in each of the 4 x 4 cells
        mask = (torch.arange(16) % 4 == 0)[:, None] & (torch.arange(16) % 4 == 0)
    with pytest.raises(ConfigError, match=message):
        pipeline.edit(images, mask, 1)


def test_the_command_writes_original_mask_results_and_a_sheet(
    run: Path, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_pil(images[0]).save(tmp_path / "digit.png")
    hidden = Image.new("L", (16, 16))
    hidden.paste(255, (0, 0, 16, 8))
    hidden.save(tmp_path / "mask.png")
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    command = ["edit", run, tmp_path / "digit.png", "--out", tmp_path / "out", "--label", "3", "-n", "2"]
    assert artok(monkeypatch, *command, "--mask", tmp_path / "mask.png") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"original.png", "mask.png", "sheet.png", "00000.png", "00001.png"}
    original, result = (Image.open(tmp_path / "out" / name) for name in ("original.png", "00001.png"))
    below = (0, 8, 16, 16)
    assert result.crop(below).tobytes() == original.crop(below).tobytes()
    assert Image.open(tmp_path / "out" / "sheet.png").width > 4 * 64
    for mask, message in ((tmp_path / "small.png", "5x5"), (tmp_path / "no.png", "no picture"), ("leftish", "neither")):
        assert artok(monkeypatch, *command, "--mask", mask) == 2
        captured = capsys.readouterr()
        assert message in " ".join(f"{captured.out} {captured.err}".split())
