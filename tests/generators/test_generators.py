"""The contract of every generator kind, on every layout that it accepts."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from helpers.models import IMAGE, TOKENIZERS

from artok.config import find, kinds
from artok.errors import LayoutError
from artok.generators.base import AdversarialGenerator, Generator, GeneratorConfig
from artok.layout import Condition, TokenLayout, Tokens
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.saved import check_layout
from artok.tokenizers.base import Tokenizer, TokenizerConfig

CLASSES = 4


@cache
def tokenizer(name: str) -> Tokenizer:
    torch.manual_seed(0)
    config: TokenizerConfig = TOKENIZERS[name]()
    built = config.build(IMAGE)
    built(torch.rand(8, *IMAGE) * 2 - 1)
    return built.eval().requires_grad_(False)


def config_of(kind: str) -> GeneratorConfig:
    found = find("generators", kind).tiny()
    assert isinstance(found, GeneratorConfig)
    return found


PAIRS = [
    (kind, name)
    for kind, name in itertools.product(kinds("generators"), TOKENIZERS)
    if config_of(kind).refuse(tokenizer(name).layout) is None
]


@pytest.fixture(params=PAIRS, ids="-on-".join)
def pair(request: pytest.FixtureRequest) -> tuple[Generator, Tokenizer]:
    kind, name = request.param
    codec = tokenizer(name)
    torch.manual_seed(0)
    generator = config_of(kind).build(codec.layout, CLASSES).eval()
    for parameter in generator.parameters():  # outputs that start at zero would make every test pass
        if parameter.ndim >= 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return generator, codec


def condition(count: int) -> Condition:
    return Condition(torch.arange(count) % CLASSES)


def noise(count: int, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(count))


def real_tokens(codec: Tokenizer, count: int) -> Tokens:
    images = torch.rand(count, *IMAGE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        return codec.encode(images)


@torch.no_grad()
def last(generator: Generator, codec: Tokenizer, given: Condition, sampling: Sampling, random: Noise) -> Tokens:
    *_, tokens = generator.steps(given, sampling, random, codec)
    return tokens


def test_every_kind_accepts_some_tokenizer() -> None:
    assert {kind for kind, _ in PAIRS} == set(kinds("generators"))


@torch.no_grad()
def test_steps_decide_more_and_more_until_all_is_decided(pair: tuple[Generator, Tokenizer]) -> None:
    generator, codec = pair
    sampling = Sampling()
    steps = list(generator.steps(condition(3), sampling, noise(3), codec))
    counts = [codec.layout.length if t.known is None else int(t.known[0].sum()) for t in steps]
    assert counts == sorted(counts)
    assert steps[-1].known is None
    assert all(step.layout == codec.layout for step in steps)
    assert steps[-1].values.isfinite().all()
    assert codec.decode(steps[-1]).shape == (3, *IMAGE)
    assert generator.passes(sampling) >= 1


def test_the_same_seed_gives_the_same_tokens_and_another_does_not(pair: tuple[Generator, Tokenizer]) -> None:
    generator, codec = pair
    first = last(generator, codec, condition(4), Sampling(), noise(4))
    again = last(generator, codec, condition(4), Sampling(), noise(4))
    other = last(generator, codec, condition(4), Sampling(), noise(4, seed=1))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_batch_equals_its_images_made_one_by_one(pair: tuple[Generator, Tokenizer], guidance: float) -> None:
    generator, codec = pair
    sampling = Sampling(cfg_scale=guidance)  # at temperature 1: at 0 rows could share one noise
    whole = last(generator, codec, condition(4), sampling, noise(4))
    for row in range(4):
        rows = slice(row, row + 1)
        alone = last(generator, codec, condition(4)[rows], sampling, noise(4)[rows])
        torch.testing.assert_close(alone.values[0], whole.values[row], rtol=2e-2, atol=2e-2)


def test_guidance_one_is_no_guidance_and_two_is_some(pair: tuple[Generator, Tokenizer]) -> None:
    generator, codec = pair
    if isinstance(generator, AdversarialGenerator):
        pytest.skip("has no unconditional half, and its class_dropout is fixed at 0")
    plain = last(generator, codec, condition(4), Sampling(), noise(4))
    barely = last(generator, codec, condition(4), Sampling(cfg_scale=1 + 1e-9), noise(4))
    torch.testing.assert_close(barely.values.float(), plain.values.float(), rtol=1e-3, atol=1e-3)
    strong = last(generator, codec, condition(4), Sampling(cfg_scale=30.0), noise(4))
    assert not torch.equal(strong.values, plain.values)


def test_one_batch_can_be_learned_by_heart(pair: tuple[Generator, Tokenizer]) -> None:
    generator, codec = pair
    generator.train()
    tokens = real_tokens(codec, 4)
    if isinstance(generator, AdversarialGenerator):
        learned_against_a_critic(generator, codec, tokens)
        return
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)

    def loss(step: int) -> torch.Tensor:
        losses = generator(tokens, condition(4), Noise(step, torch.arange(4)), codec)
        return torch.stack(list(losses.values())).sum()

    first = sum(float(loss(step).detach()) for step in range(8)) / 8
    for step in range(60):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    final = sum(float(loss(step).detach()) for step in range(8)) / 8
    assert final < 0.6 * first


def learned_against_a_critic(generator: AdversarialGenerator, codec: Tokenizer, tokens: Tokens) -> None:
    """Its loss says who is ahead, not how good it is: what must fall is the distance to the batch."""
    kind = type(generator).__module__.rpartition(".")[2]
    critic = config_of(kind).build_critic(codec.layout, CLASSES)
    assert critic is not None
    generator.attach_critic(critic)
    players = [
        (module, torch.optim.Adam(module.parameters(), lr=5e-3, betas=(0.0, 0.99))) for module in (generator, critic)
    ]

    def distance() -> float:
        with torch.no_grad():
            made = generator.made(condition(4), noise(4, seed=100))
        return float((made - generator.pictures(tokens)).square().mean())

    first = distance()
    for step in range(150):
        random = Noise(step, torch.arange(4))
        for module, optimizer in players:
            if module is generator:
                losses = generator(tokens, condition(4), random, codec)
            else:
                made = generator.made(condition(4), random).detach()
                losses = critic(generator.pictures(tokens), made, condition(4).labels, random, step, 0.0).losses
            for player, _ in players:
                player.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
    assert distance() < 0.6 * first


@torch.no_grad()
def test_the_likelihood_is_that_of_the_loss(pair: tuple[Generator, Tokenizer]) -> None:
    generator, codec = pair
    tokens = real_tokens(codec, 5)
    nats = generator.log_likelihood(tokens, condition(5), codec)
    if nats is None:
        return
    assert nats.shape == (5,)
    assert nats.dtype == torch.float64
    losses = generator(tokens, condition(5), noise(5), codec)
    mean = -float(nats.mean()) / (codec.layout.length * codec.layout.codes)
    assert mean == pytest.approx(float(torch.stack(list(losses.values())).sum()), rel=1e-4)


@pytest.mark.parametrize("kind", kinds("generators"))
def test_a_layout_that_does_not_fit_is_refused_with_both_sides_named(kind: str) -> None:
    config = config_of(kind)
    layouts = [
        TokenLayout(((4, 4),), 4, 16, IMAGE),
        TokenLayout(((1, 1), (2, 2), (4, 4)), 4, 16, IMAGE),
        TokenLayout(((4, 4),), 4, None, IMAGE),
        TokenLayout(((2, 4, 4),), 4, 16, (3, 5, 16, 16)),
    ]
    refused = [layout for layout in layouts if config.refuse(layout)]
    assert len(refused) < len(layouts)
    for layout in refused:
        with pytest.raises(LayoutError) as error:
            check_layout(config, layout)
        assert kind in str(error.value)
        assert str(layout) in str(error.value)
