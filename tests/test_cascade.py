"""Super-resolution stages: each is told the images before it, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from artok.cascade import Cascade, low_resolution
from artok.commands.sample import Request, sample
from artok.conditioning import control, labels
from artok.data.controls import low_resolution as low_resolution_data
from artok.errors import ConfigError
from artok.evaluation.controls import BaseSamples
from artok.generators import diffusion
from artok.generators.networks import unet
from artok.images import to_uint8
from artok.layout import Condition
from artok.metrics.base import EvalBatch
from artok.pipeline import Pipeline
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.settings import Sampling
from artok.saved import Facts, Saved
from artok.tokenizers import pixels

CLASSES = ("one", "two")
PATH = DiffusionConfig(schedule="straight", prediction_type="velocity", solver="euler", steps=2)


def model(size: int, stage: bool, seed: int, channels: int = 1, classes: tuple[str, ...] = CLASSES) -> Pipeline:
    torch.manual_seed(seed)
    parts = (labels.Config(), control.Config(hidden=8, channels=channels)) if stage else (labels.Config(),)
    section = diffusion.Config(network=unet.Config.tiny(), diffusion=PATH, conditioning=parts)
    tokenizer = pixels.Config().build((channels, size, size))
    generator = section.build(tokenizer.layout, len(classes)).eval()
    for weight in generator.parameters():
        if weight.ndim >= 2 and not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    told = {"kind": "low_resolution", "factor": 2} if stage else None
    given: dict[str, Any] = {"image": (channels, size, size), "data": "", "version": ""}
    facts = Facts(**given, classes=classes, control=told)
    saved = Saved(tokenizer=pixels.Config(), generator=section, facts=facts)
    return Pipeline(tokenizer, generator, classes, Sampling(), saved, Saved(tokenizer=pixels.Config(), facts=facts))


def blocks(images: Tensor, factor: int) -> Tensor:
    return to_uint8(images).repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def test_each_stage_is_told_the_images_and_labels_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base, middle, last = model(4, False, 0), model(8, True, 1), model(16, True, 2)
    told: list[Condition] = []
    for stage in (middle, last):
        steps = type(stage.generator).steps
        monkeypatch.setattr(
            stage.generator, "steps", lambda condition, *given, s=stage, f=steps: (
                told.append(condition), f(s.generator, condition, *given))[1]
        )  # fmt: skip
        monkeypatch.setattr(stage, "prepare", lambda dtype, s=stage: (s.generator, "float32"))
    images = Cascade(base, [middle, last])([0, 1], 2, seed=3, batch=2)
    assert images.shape == (4, 1, 16, 16)
    first = base([0, 1], 2, seed=3, batch=2)
    maps, asked = (torch.cat([getattr(each, part) for each in told[:2]]) for part in ("control", "labels"))
    assert torch.equal(to_uint8(maps), blocks(first, 2)) and asked.tolist() == [0, 0, 1, 1]
    second = middle([0, 0, 1, 1], control=blocks(first, 2), seed=3, batch=2)
    assert torch.equal(images, last([0, 0, 1, 1], control=blocks(second, 2), seed=3, batch=2))


def test_the_control_is_that_of_training() -> None:
    """An image without detail is its own low-resolution copy."""
    stage = model(16, True, 0)
    made = low_resolution(stage, torch.rand(3, 1, 8, 8) * 2 - 1)
    assert made.shape == (3, 1, 16, 16) and torch.equal(low_resolution_data.Config(factor=2).compute(made), made)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (lambda: model(8, False, 1), "this model was not trained to"),
        (lambda: model(16, True, 1), r"makes 1x16x16 .* 2 times smaller, and those before it are 1x4x4"),
        (lambda: model(8, True, 1, channels=3), "makes 3x8x8"),
        (lambda: model(8, True, 1, classes=("all",)), "knows 1 classes and the model before it 2"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused(stage: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cascade(model(4, False, 0), [stage()])


def test_samples_of_every_stage_are_written(tmp_path: Path) -> None:
    for name, built in (("base", model(4, False, 0)), ("stage", model(8, True, 1))):
        built.save_pretrained(tmp_path / name)
    run, asked = str(tmp_path / "base"), Request("one,two", n=2)
    images = sample(run, [], {"seed": 5}, asked, 64, tmp_path / "out", "cpu", [str(tmp_path / "stage")])
    base, stage = (Pipeline.from_pretrained(tmp_path / name) for name in ("base", "stage"))
    assert torch.equal(images, Cascade(base, [stage])([0, 1], 2, seed=5))
    assert len(list((tmp_path / "out").glob("0*.png"))) == len(list((tmp_path / "out" / "8x8").glob("0*.png"))) == 4


def test_a_stage_is_measured_on_samples_of_its_base() -> None:
    base, stage = model(4, False, 0), model(8, True, 1)
    held_out = EvalBatch(labels=torch.tensor([1, 0, 1]))
    controls = BaseSamples(Cascade(base, [stage]), None, lambda: held_out)
    numbers = torch.tensor([2, 1])
    found = controls.of(numbers, (8, 8))
    wanted = base([1, 0, 1])
    assert torch.equal(found, blocks(wanted[numbers], 2)) and not controls.missing(numbers).any()
