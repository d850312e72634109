"""The contract of every kind of conditioner, and what several of them say together."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from artok.conditioning import text
from artok.conditioning.base import Conditioner, ConditionerConfig, Conditioners, Context, ContextShape
from artok.conditioning.encoders.base import TextEncoderConfig
from artok.config import find, kinds, validate
from artok.errors import ConfigError, LayoutError
from artok.generators import raster
from artok.layout import Condition, ConditionPart, Text, TokenLayout, Tokens

WIDTH, CLASSES = 12, 4
LAYOUT = TokenLayout(((4, 4),), 3, None, (3, 16, 16))
CONDITION = Condition(
    labels=torch.tensor([0, 2, 3]),
    text=Text(torch.randint(1, 257, (3, 6)), torch.arange(6) < torch.tensor([6, 4, 1])[:, None]),
    known=Tokens(torch.randn(3, 16, 3), LAYOUT),
    control=torch.randn(3, 1, 16, 16),
)
SHAPE = ContextShape(WIDTH, (4, 4), (3, 16, 16))


@pytest.mark.parametrize("kind", kinds("conditioning"))
def test_a_part_becomes_a_context_and_its_null_another(kind: str) -> None:
    config = find("conditioning", kind).tiny()
    assert isinstance(config, ConditionerConfig)
    conditioner = config.build(SHAPE, CLASSES, null=True)
    conditioner.initialise(lambda weight: torch.nn.init.normal_(weight))
    context = conditioner(CONDITION)
    assert context.pooled.shape == (3, WIDTH)
    assert context.sequence.shape == (3, conditioner.length, WIDTH)
    assert context.mask is None or context.mask.shape == context.sequence.shape[:2]
    assert config.gives_map == (context.spatial is not None)
    assert context.spatial is None or context.spatial.shape == (3, WIDTH, 4, 4)
    null = conditioner(CONDITION.dropped(conditioner.part))
    assert not torch.isclose(said(null), said(context)).all(1).any()
    missing = Condition(known=CONDITION.known)  # a part that no conditioner reads
    torch.testing.assert_close(said(conditioner(missing)), said(null))
    part = conditioner(CONDITION[torch.tensor([2, 0])])
    torch.testing.assert_close(said(part), said(context)[[2, 0]])
    example = conditioner.example(2, torch.device("meta"))
    assert example.parts == (conditioner.part,) and len(example) == 2 and example.device.type == "meta"
    conditioner.initialise(lambda weight: torch.nn.init.constant_(weight, 0.5))
    assert any((parameter == 0.5).all() for parameter in conditioner.parameters())


@pytest.mark.parametrize("kind", kinds("conditioning.encoders"))
def test_a_text_encoder_makes_vectors_and_needs_no_files_for_it(kind: str) -> None:
    config = find("conditioning.encoders", kind).tiny()
    assert isinstance(config, TextEncoderConfig)
    encoder = config.build(WIDTH)
    assert encoder.length == config.length
    assert encoder.example(2, torch.device("meta")).values.device.type == "meta"
    example = encoder.example(3, torch.device("cpu"))
    assert example.mask.shape == (3, encoder.length) and example.mask.all()
    assert (example.values.dtype == torch.int64) == (encoder.vocab is not None)
    assert encoder(example).shape == (3, encoder.length, WIDTH)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    conditioner = text.Config(encoder=config).build(SHAPE, CLASSES, null=True)
    conditioner.initialise(lambda weight: torch.nn.init.normal_(weight))
    condition = Condition(text=example).dropped("text", torch.tensor([False, True, False]))
    context = conditioner(condition)
    assert torch.equal(context.sequence[1], conditioner.null)
    torch.testing.assert_close(context.sequence[0], conditioner.encoder(example)[0])
    assert context.mask is not None and context.mask.all()


def said(context: Context) -> Tensor:
    """All of a context that a generator may read, (B, numbers)."""
    masked = context.sequence if context.mask is None else context.sequence * context.mask[..., None]
    places = context.pooled[:, None][:, :0] if context.places is None else context.places
    return torch.cat([context.pooled[:, None], masked, places], dim=1).flatten(1)


class Edges(Conditioner):
    """A map in register with the grid, as a context of three entries and a map."""

    part: ClassVar[ConditionPart] = "control"
    length = 3

    def forward(self, condition: Condition) -> Context:
        assert condition.control is not None
        maps = condition.control.mean(1, keepdim=True).expand(-1, WIDTH, -1, -1)
        pooled = maps.mean((2, 3))
        return Context(pooled, pooled[:, None].repeat(1, 3, 1), torch.tensor([[True, True, False]] * 3), maps)

    def example(self, rows: int, device: torch.device) -> Condition:
        return Condition(control=torch.zeros(rows, 2, 4, 4, device=device))

    def initialise(self, fill: object) -> None:
        return


class EdgesConfig(ConditionerConfig):
    gives_map: ClassVar[bool] = True
    kind: str = "edges"

    def build(self, shape: ContextShape, classes: int, null: bool) -> Edges:
        return Edges()

    @classmethod
    def tiny(cls) -> EdgesConfig:
        return cls()


def test_several_conditioners_make_one_context() -> None:
    labels = find("conditioning", "labels").tiny()
    both = Conditioners((labels, EdgesConfig()), SHAPE, CLASSES)  # type: ignore[arg-type]
    assert both.parts == {"labels", "control"}
    context = both(CONDITION)
    first, second = both["labels"](CONDITION), both["control"](CONDITION)
    torch.testing.assert_close(context.pooled, first.pooled + second.pooled)
    torch.testing.assert_close(context.sequence, torch.cat([first.sequence, second.sequence], 1))
    assert context.mask is not None
    assert context.mask[0].tolist() == [True, True, True, False]
    assert context.spatial is not None
    torch.testing.assert_close(context.spatial, second.spatial)
    half: Tensor = context[1:].pooled
    torch.testing.assert_close(half, context.pooled[1:])


def test_without_a_null_a_condition_must_have_labels() -> None:
    labels = find("conditioning", "labels").tiny().build(SHAPE, CLASSES, null=False)  # type: ignore[attr-defined]
    assert labels(CONDITION).pooled.shape == (3, WIDTH)
    with pytest.raises(LayoutError, match="nothing without labels"):
        labels(Condition(control=torch.zeros(3, 1, 4, 4)))


def test_a_generator_needs_a_conditioner_and_names_an_unknown_one() -> None:
    section = {"kind": "raster", "depth": 1}
    assert validate(raster.Config, section, "test").conditioning[0].kind == "labels"
    with pytest.raises(ConfigError, match="conditioning"):
        validate(raster.Config, section | {"conditioning": []}, "test")
    with pytest.raises(ConfigError, match="labels"):
        validate(raster.Config, section | {"conditioning": [{"kind": "label"}]}, "test")
