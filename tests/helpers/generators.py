"""Generators of every kind on every tokenizer that they accept, for contract tests; a new file is found by itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import get_args

import torch
from torch import Tensor, nn

from artok.conditioning import labels, text
from artok.config import find, kinds
from artok.generators.base import AdversarialGenerator, Generator, GeneratorConfig
from artok.generators.networks.base import NetworkConfig
from artok.layout import Condition, Text, Tokens, last
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


HEARINGS = ("labels", "text", "labels+text")


@dataclass(frozen=True)
class Case:
    """A generator's config on a tokenizer, and the parts of a condition that it is given."""

    config: GeneratorConfig
    tokenizer: str
    hears: str

    @property
    def codec(self) -> Tokenizer:
        return tokenizer(self.tokenizer)

    def build(self) -> Generator:
        torch.manual_seed(0)
        generator = self.config.build(self.codec.layout, CLASSES).eval()
        randomise_zeros(generator)
        return generator

    def condition(self, count: int) -> Condition:
        given = condition(count).labels if "labels" in self.hears else None
        return Condition(labels=given, text=texts(count) if "text" in self.hears else None)


def hearing(config: GeneratorConfig, hears: str) -> GeneratorConfig:
    """The config with the conditioning that `hears` names; a family's own text part where it has one."""
    told = next((part for part in config.conditioning if part.kind == "text"), text.Config.tiny())
    parts = {"labels": config.conditioning, "text": (told,), "labels+text": (labels.Config(), told)}
    return config.model_copy(update={"conditioning": parts[hears]})


def networks() -> Iterator[tuple[str, NetworkConfig]]:
    """Every network of diffusion, in every way of hearing a text that it offers."""
    for kind in kinds("generators.networks"):
        tiny = find("generators.networks", kind).tiny()
        assert isinstance(tiny, NetworkConfig)
        for way in text_ways(tiny):
            yield f"{kind}-{way}", tiny.model_copy(update={"text_attention": way, "depth": 2})
        if not text_ways(tiny):
            yield kind, tiny


def text_ways(config: GeneratorConfig | NetworkConfig) -> tuple[str, ...]:
    """The values of its `text_attention`; none where it has no such setting."""
    setting = type(config).model_fields.get("text_attention")
    return get_args(setting.annotation) if setting else ()


def texts(count: int, seed: int = 0) -> Text:
    """Texts of 6, 3, 1, 4, 6, ... ids, and other ids where they have none."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([6, 3, 1, 4])[torch.arange(count) % 4]
    return Text(torch.randint(1, 300, (count, 6), generator=random), torch.arange(6) < lengths[:, None])


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


def total_loss(
    generator: Generator, codec: Tokenizer, tokens: Tokens, seed: int = 0, given: Condition | None = None
) -> torch.Tensor:
    """The sum of the training losses, of an adversarial generator against a fresh critic."""
    if isinstance(generator, AdversarialGenerator):
        config = generator.config
        assert isinstance(config, GeneratorConfig)
        torch.manual_seed(1)
        critic = config.build_critic(codec.layout, CLASSES)
        assert critic is not None
        generator.attach_critic(critic)
    given = condition(len(tokens)) if given is None else given
    losses = generator(tokens, given, noise(len(tokens), seed), codec)
    return torch.stack(list(losses.values())).sum()


CASES = {
    f"{kind}-{hears}": Case(hearing(config_of(kind), hears), name, hears)
    for kind, name in ONE_EACH
    for hears in HEARINGS
    if hears != "labels" or "text" not in {part.kind for part in config_of(kind).conditioning}
} | {
    f"diffusion-{name}": Case(
        hearing(config_of("diffusion").model_copy(update={"network": network}), "text"), "conv", "text"
    )
    for name, network in networks()
}
CASES |= {
    f"{kind}-{way}": Case(hearing(config_of(kind).model_copy(update={"text_attention": way}), "text"), name, "text")
    for kind, name in ONE_EACH
    for way in text_ways(config_of(kind))[1:]
}
TEXTS = {name: case for name, case in CASES.items() if case.hears != "labels"}
