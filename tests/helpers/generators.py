"""Generators of every kind on every tokenizer that they accept, for contract tests; a new file is found by itself."""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor, nn

from artok.config import find, kinds
from artok.generators.base import AdversarialGenerator, Generator, GeneratorConfig
from artok.layout import Condition, Tokens, last
from artok.noise import Noise
from artok.sampling.settings import Sampling
from artok.tokenizers.base import Tokenizer, TokenizerConfig
from helpers.models import IMAGE, TOKENIZERS

CLASSES = 4
ROUNDINGS = 2000  # of float32 that follow one another in a tiny model's sample


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
ONE_EACH = list({kind: (kind, name) for kind, name in reversed(PAIRS)}.values())  # a tokenizer a kind


def randomise_zeros(module: nn.Module) -> nn.Module:
    """Give random values to weights that start at zero: with these, every comparison of outputs would pass."""
    for parameter in module.parameters():
        if parameter.ndim >= 2 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return module


def build(kind: str, codec: Tokenizer) -> Generator:
    torch.manual_seed(0)
    generator = config_of(kind).build(codec.layout, CLASSES).eval()
    randomise_zeros(generator)
    return generator


def condition(count: int) -> Condition:
    return Condition(torch.arange(count) % CLASSES)


def noise(count: int, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(count))


def real_tokens(codec: Tokenizer, count: int) -> Tokens:
    images = torch.rand(count, *IMAGE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        return codec.encode(images)


@torch.no_grad()
def generate(
    generator: Generator, codec: Tokenizer, given: Condition, sampling: Sampling | None = None, seed: int = 0
) -> Tokens:
    """The finished tokens of samples 0, 1, ..."""
    return last(generator.steps(given, sampling or Sampling(), noise(len(given), seed), codec))


def assert_same(made: Tensor, wanted: Tensor) -> None:
    """Equal codes, or vectors that differ by roundings relative to the largest number."""
    if not made.is_floating_point():
        assert torch.equal(made, wanted)
        return
    atol = ROUNDINGS * 2.0**-24 * max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(made, wanted, rtol=0, atol=atol)


def total_loss(generator: Generator, codec: Tokenizer, tokens: Tokens, seed: int = 0) -> torch.Tensor:
    """The sum of the training losses, of an adversarial generator against a fresh critic."""
    if isinstance(generator, AdversarialGenerator):
        kind = type(generator).__module__.rpartition(".")[2]
        torch.manual_seed(1)
        critic = config_of(kind).build_critic(codec.layout, CLASSES)
        assert critic is not None
        generator.attach_critic(critic)
    losses = generator(tokens, condition(len(tokens)), noise(len(tokens), seed), codec)
    return torch.stack(list(losses.values())).sum()
