"""What `artok plan` counts on the meta device is what the real modules do: parameters, FLOPs, memory."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from models import IMAGE, TOKENIZERS
from torch import Tensor, nn

from artok.config import load, validate
from artok.generators.base import Generator
from artok.layout import Condition, TokenLayout, Tokens
from artok.losses.base import Loss
from artok.metrics import cost
from artok.noise import Noise
from artok.saved import check_layout
from artok.studies.costs import design
from artok.studies.costs.training import parameters, training_flops
from artok.tokenizers.base import Tokenizer
from artok.training.experiment import Experiment

GENERATORS = ("raster", "var", "mar", "mar-causal", "maskgit", "dit", "dit-codes", "unet-pixels")
TOKENIZER_CONFIGS = ("vq", "msvq", "kl")
BATCH = 8


def real(name: str) -> tuple[Experiment, Tokenizer, Generator | None]:
    """A shipped digits experiment with real weights."""
    experiment = load(Experiment, f"digits/{name}")
    tokenizer = design.tokenizer_section(experiment).build(experiment.image)
    if experiment.generator is None:
        return experiment, tokenizer, None
    check_layout(experiment.generator, tokenizer.layout)
    tokenizer.eval().requires_grad_(False)
    return experiment, tokenizer, experiment.generator.build(tokenizer.layout, 10)


def random_tokens(layout: TokenLayout, batch: int) -> Tokens:
    shape = (batch, *layout.value_shape())
    values = torch.randint(layout.vocab, shape) if layout.vocab else torch.randn(shape)
    return Tokens(values, layout)


def real_losses(experiment: Experiment, tokenizer: Tokenizer, generator: Generator | None, batch: int) -> Tensor:
    if generator is not None:
        condition = Condition(torch.zeros(batch, dtype=torch.int64))
        losses = generator(random_tokens(tokenizer.layout, batch), condition, Noise(0, torch.arange(batch)), tokenizer)
        return reduce(torch.add, losses.values())
    images = torch.rand(batch, *experiment.image) * 2 - 1
    result = tokenizer(images)
    losses = dict(result.losses)
    for config in experiment.losses:
        comparison = config.build(experiment.image)
        assert isinstance(comparison, Loss)
        losses |= comparison(result.images, images)
    return reduce(torch.add, losses.values())


def smaller(experiment: Experiment, batch: int) -> Experiment:
    return experiment.model_copy(update={"training": experiment.training.model_copy(update={"batch": batch})})


@pytest.mark.parametrize("name", [*TOKENIZER_CONFIGS, *GENERATORS])
def test_parameters_and_training_flops_are_those_of_the_real_modules(name: str) -> None:
    experiment, tokenizer, generator = real(name)
    model: nn.Module = generator or tokenizer
    batch = 256 if name in ("mar", "maskgit") else BATCH  # these draw how many tokens they train on
    assert parameters(experiment) == cost.parameters(model)
    measured = cost.flops(lambda: real_losses(experiment, tokenizer, generator, batch).backward()) / batch
    assert training_flops(smaller(experiment, batch)) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_tokenizer_can_be_counted(kind: str) -> None:
    section = {"name": "x", "data": {"kind": "shapes", "size": IMAGE[1]}, "training": {"images": 8, "batch": 4}}
    config = TOKENIZERS[kind]()
    experiment = validate(Experiment, section | {"tokenizer": config.model_dump()}, "test")
    model = config.build(IMAGE)
    assert parameters(experiment) == cost.parameters(model)
    if cost.parameters(model):
        measured = cost.flops(lambda: real_losses(experiment, model, None, 4).backward()) / 4
        assert training_flops(experiment) == pytest.approx(measured, rel=0.01)
