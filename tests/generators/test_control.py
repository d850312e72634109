"""Every family hears a control map: it changes the sample, its null does not, and it acts where it lies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.generators import (
    CLASSES,
    PAIRS,
    assert_same,
    config_of,
    generate,
    noise,
    randomise_zeros,
    texts,
    tokenizer,
)
from helpers.models import IMAGE

from artok.conditioning import control
from artok.conditioning.base import ContextShape
from artok.config import validate
from artok.errors import ConfigError, LayoutError
from artok.generators import causal_mar, gan, raster, var
from artok.generators.base import Generator, GeneratorConfig
from artok.generators.networks import unet
from artok.layout import Condition, TokenLayout, last
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.tokenizers.base import Tokenizer

LATENTS = TokenLayout(((4, 4),), 4, None, IMAGE)


def with_control(config: GeneratorConfig) -> GeneratorConfig:
    return config.model_copy(update={"conditioning": (*config.conditioning, control.Config.tiny())})


def hearing(config: GeneratorConfig, layout: TokenLayout) -> Generator:
    """A generator of labels and control, whose features are large enough to be seen."""
    torch.manual_seed(0)
    generator = with_control(config).build(layout, CLASSES).eval()
    for weight in generator.conditioner["control"].parameters():
        torch.nn.init.normal_(weight)
    return randomise_zeros(generator)  # type: ignore[return-value]


def mapped(count: int, seed: int = 0) -> Condition:
    maps = torch.randn(count, 1, *IMAGE[1:], generator=torch.Generator().manual_seed(seed))
    return Condition(torch.arange(count) % CLASSES, control=maps)


def fits(kind: str, name: str) -> bool:
    return config_of(kind).reads_maps and len(tokenizer(name).layout.grid) == len(IMAGE) - 1


CASES = list({kind: (kind, name, "") for kind, name in reversed(PAIRS) if fits(kind, name)}.values())
CASES += [("diffusion", next(name for kind, name, _ in CASES if kind == "diffusion"), "unet")]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[Generator, Tokenizer]:
    kind, name, network = request.param
    config, codec = config_of(kind), tokenizer(name)
    if network:
        config = config.model_copy(update={"network": unet.Config.tiny()})
    return hearing(config, codec.layout), codec


def test_control_changes_the_sample_and_its_null_does_not(case: tuple[Generator, Tokenizer]) -> None:
    generator, codec = case
    given = mapped(3)
    made = generate(generator, codec, given).values
    assert not torch.equal(made, generate(generator, codec, mapped(3, 1)).values)
    without = generate(generator, codec, Condition(given.labels)).values
    assert not torch.equal(without, made)
    assert_same(generate(generator, codec, given.dropped("control")).values, without)


@torch.no_grad()
def test_vectors_of_a_map_start_as_large_as_the_embeddings(case: tuple[Generator, Tokenizer]) -> None:
    """Larger ones drown the embeddings of tokens. Two samples of 32 normal numbers differ by a factor of 3 in their
    root mean square once in 10^8 times; where a family gives no size, that of torch's embeddings is 1."""
    generator, codec = case
    fresh = config_of(type(generator).__module__.rpartition(".")[2])
    if "network" in type(fresh).model_fields:
        fresh = fresh.model_copy(update={"network": generator.config.network})  # type: ignore[union-attr]
    conditioner: Any = with_control(fresh).build(codec.layout, CLASSES).conditioner["control"]
    places = conditioner(mapped(3)).places
    assert places.shape[2] >= 32
    size = float(conditioner.null.square().mean().sqrt()) or 1.0
    assert 1 / 3 < float(places.square().mean().sqrt()) / size < 3


def test_a_row_of_a_batch_with_control_is_as_alone(case: tuple[Generator, Tokenizer]) -> None:
    generator, codec = case
    given = mapped(3).dropped("control", torch.tensor([False, True, False]))
    together = generate(generator, codec, given, Sampling(cfg_scale=1.5)).values
    for row in range(3):
        random = Noise(0, torch.tensor([row]))
        with torch.no_grad():
            alone = last(generator.steps(given[row : row + 1], Sampling(cfg_scale=1.5), random, codec)).values
        assert_same(alone, together[row : row + 1])


def test_each_weight_that_hears_control_is_trained(case: tuple[Generator, Tokenizer]) -> None:
    generator, codec = case
    images = torch.rand(4, *IMAGE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        tokens = codec.encode(images)
    told = texts(4) if "text" in generator.hears else None
    losses = generator.train()(tokens, replace(mapped(4), text=told), noise(4), codec)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, weight in generator.named_parameters() if weight.grad is None] == []
    assert generator.conditioner["control"].encoder[0].weight.grad.any()  # type: ignore[index, union-attr]


# ------------------------------------------------------------------------------------------------- in its place


def at_position(position: int, value: float = 1.0) -> Condition:
    """A map that differs from that of value -1 in the four pixels by four of one of 16 positions."""
    maps = torch.full((1, 1, 16, 16), -1.0)
    row, column = 4 * (position // 4), 4 * (position % 4)
    maps[..., row : row + 4, column : column + 4] = value
    return Condition(torch.tensor([1]), control=maps)


@torch.no_grad()
def test_a_part_of_a_map_is_encoded_at_its_position() -> None:
    conditioner = control.Config.tiny().build(ContextShape(8, (4, 4), (3, 16, 16)), CLASSES, null=True)
    randomise_zeros(conditioner)
    plain = conditioner(at_position(0, value=-1.0)).places
    for position in range(16):
        differs = (conditioner(at_position(position)).places != plain).any(-1)
        assert differs.nonzero().tolist() == [[0, position]]


@torch.no_grad()
@pytest.mark.parametrize("size, grid", [((5, 8, 8), (2, 4, 4)), ((12,), (3,)), ((17, 8), (5, 2))])
def test_maps_of_any_axes_are_encoded_and_causal_ones_begin_with_one_frame(
    size: tuple[int, ...], grid: tuple[int, ...]
) -> None:
    conditioner = control.Config(hidden=4).build(ContextShape(8, grid, (3, *size)), CLASSES, null=True)
    randomise_zeros(conditioner)
    maps = torch.randn(1, 1, *size)
    plain = conditioner(Condition(control=maps)).spatial
    assert plain.shape == (1, 8, *grid)
    patch = -(-size[0] // grid[0])
    spare = patch * grid[0] - size[0]
    for frame in range(size[0]):
        changed = maps.clone()
        changed[:, :, frame] += 1
        moved = (conditioner(Condition(control=changed)).spatial != plain).any(1).flatten(2 if len(size) > 1 else 1)
        places = moved.any(-1) if len(size) > 1 else moved
        assert places.nonzero().tolist() == [[0, (frame + spare) // patch]]


@torch.no_grad()
@pytest.mark.parametrize("codes", [1, 2])
def test_raster_reads_the_control_of_the_position_that_it_predicts(codes: int) -> None:
    layout = TokenLayout(((4, 4),), 4, 16, IMAGE, codes)
    model: Any = hearing(raster.Config.tiny(), layout)
    values = torch.randint(0, 16, (1, 16 * codes), generator=torch.Generator().manual_seed(0))
    plain = model.logits(values[:, :-1], model.context(at_position(0, value=-1.0)))
    for position in (0, 5, 15):
        moved = model.logits(values[:, :-1], model.context(at_position(position))) - plain
        first = moved.abs().amax((0, 2)) > 1e-6
        assert int(first.long().argmax()) == position * codes


@torch.no_grad()
@pytest.mark.parametrize("family", [raster, var], ids=["raster", "var"])
def test_with_its_cache_control_gives_the_logits_of_the_whole(family: Any) -> None:
    """The likeliest codes token by token are those of the whole sequence at once."""
    name = next(name for kind, name, _ in CASES if kind == family.__name__.rpartition(".")[2])
    codec = tokenizer(name)
    model: Any = hearing(family.Config.tiny(), codec.layout)
    given = mapped(3)
    made = generate(model, codec, given, Sampling(temperature=0.0))
    context = model.context(given)
    flat = made.values.flatten(1)
    logits = model.logits(flat[:, :-1], context) if family is raster else model.logits(made, context, codec)
    assert torch.equal(logits.argmax(-1), flat)


@torch.no_grad()
def test_causal_mar_with_its_cache_reads_control_as_without() -> None:
    model: Any = hearing(causal_mar.Config.tiny(), LATENTS)
    given = mapped(3)
    made = generate(model, tokenizer("pixels"), given)
    context, random, x = model.context(given), noise(3), torch.zeros(3, 0, 4)
    for _ in range(16):
        x = torch.cat([x, model.head.sample(model.conditions(x, context)[:, -1:], 1.0, Sampling(), random)], dim=1)
    assert_same(made.values, x)


# ------------------------------------------------------------------------------------------------- mistakes


def test_a_map_of_another_size_is_refused() -> None:
    model = hearing(raster.Config.tiny(), TokenLayout(((4, 4),), 4, 16, IMAGE))
    with pytest.raises(LayoutError, match=r"the control is 1x8x16 .* and this generator hears 1x16x16"):
        model.context(Condition(torch.tensor([1]), control=torch.ones(1, 1, 8, 16)))


def test_a_control_for_a_model_of_labels_is_refused() -> None:
    model = raster.Config.tiny().build(TokenLayout(((4, 4),), 4, 16, IMAGE), CLASSES)
    with pytest.raises(LayoutError, match="hears known, labels, and the condition also has control"):
        model.context(mapped(1))


def test_tokens_without_a_place_in_the_image_cannot_hear_control() -> None:
    config = with_control(raster.Config.tiny())
    with pytest.raises(LayoutError, match="the axes of the sample, 2 of them, and the grid is 32"):
        config.build(TokenLayout(((32,),), 4, 16, IMAGE), CLASSES)


@pytest.mark.parametrize(
    "conditioning, message",
    [
        ([{"kind": "control"}], "a map alone; add {kind: labels}"),
        ([{"kind": "labels"}, {"kind": "control"}, {"kind": "control"}], "lists kind control twice"),
    ],
)
def test_a_section_that_cannot_hear_control_is_refused(conditioning: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(raster.Config, {"kind": "raster", "depth": 1, "conditioning": conditioning}, "test")


def test_a_gan_hears_no_control() -> None:
    section = gan.Config.tiny().model_dump() | {"conditioning": [{"kind": "labels"}, {"kind": "control"}]}
    with pytest.raises(ConfigError, match="generator gan hears no control"):
        validate(gan.Config, section, "test")
