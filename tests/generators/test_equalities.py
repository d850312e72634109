"""Two ways to the same sample: guidance of 1 and of 0, cached and recomputed, together and alone."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.generators import (
    CLASSES,
    ONE_EACH,
    assert_same,
    build,
    condition,
    generate,
    noise,
    randomise_zeros,
    tokenizer,
)
from helpers.models import IMAGE
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from artok.generators import causal_mar, gan
from artok.generators.base import AdversarialGenerator, Generator
from artok.layout import Condition, TokenLayout, last
from artok.noise import Noise
from artok.sampling import guidance as guidance_module
from artok.sampling.guidance import Guidance
from artok.sampling.settings import Sampling
from artok.tokenizers.base import Tokenizer

LATENTS = TokenLayout(((4, 4),), 4, None, IMAGE)
Case = tuple[Generator, Tokenizer]


@pytest.fixture(params=ONE_EACH, ids="-on-".join)
def case(request: pytest.FixtureRequest) -> Case:
    kind, name = request.param
    codec = tokenizer(name)
    return build(kind, codec), codec


# ------------------------------------------------------------------------------------------------- guidance


def guided(generator: Generator) -> None:
    if isinstance(generator, AdversarialGenerator):
        pytest.skip("has no unconditional half")


def test_guidance_of_scale_one_at_every_step_is_none(pair: Case) -> None:
    """Outside its interval the scale is 1."""
    generator, codec = pair
    guided(generator)
    nowhere = Sampling(cfg_scale=3.0, cfg_interval=(0.0, 0.0))
    made = generate(generator, codec, condition(4), nowhere).values
    assert_same(made, generate(generator, codec, condition(4)).values)


def test_outside_its_interval_guidance_costs_nothing_and_changes_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference takes both halves at every step, at the smallest scale above 1. Families with a cache need the
    second half up to the end of the interval."""
    generator, codec = case
    guided(generator)
    sampling = Sampling(cfg_scale=3.0, cfg_interval=(0.25, 0.5))
    made, cost = generate(generator, codec, condition(4), sampling).values, cost_of(generator, codec, sampling)
    scales = guidance_module.scale_at
    monkeypatch.setattr(guidance_module, "scale_at", lambda *args: max(scales(*args), math.nextafter(1, 2)))
    assert_same(made, generate(generator, codec, condition(4), sampling).values)
    assert cost < 0.9 * cost_of(generator, codec, sampling)


def cost_of(generator: Generator, codec: Tokenizer, sampling: Sampling) -> int:
    with FlopCounterMode(display=False) as counter:
        generate(generator, codec, condition(4), sampling)
    return counter.get_total_flops()


def test_guidance_of_scale_zero_is_the_unconditional_sample(pair: Case) -> None:
    generator, codec = pair
    guided(generator)
    solver = "ddim" if "solver" in generator.reads else None  # a learned variance would stay the conditional one
    made = generate(generator, codec, condition(4), Sampling(cfg_scale=0.0, solver=solver)).values
    null = condition(4).dropped("labels")
    assert_same(made, generate(generator, codec, null, Sampling(solver=solver)).values)


@torch.no_grad()
def test_guided_causal_mar_with_its_cache_samples_as_without() -> None:
    torch.manual_seed(0)
    model = causal_mar.Config.tiny().build(LATENTS, CLASSES).eval()
    randomise_zeros(model)
    sampling = Sampling(cfg_scale=2.5, cfg_schedule="linear")
    made = last(model.steps(condition(3), sampling, noise(3), None))
    guidance, random = Guidance(condition(3), sampling, 16), noise(3)
    context = model.context(guidance.condition)
    x = torch.zeros(3, 0, 4)
    for step in range(16):
        z = model.conditions(guidance.repeat(x, step), guidance.take(context, step))[
            :, -1:
        ]  # all tokens so far, without a cache
        x = torch.cat([x, model.head.sample(z, 1 + 1.5 * step / 15, sampling, random)], dim=1)
    assert_same(made.values, x)


# ------------------------------------------------------------------------------------------------- batches


def test_rows_draw_their_own_numbers(case: Case) -> None:
    """Equal conditions with different numbers give different samples, and equal numbers equal ones."""
    generator, codec = case
    alike = Condition(torch.zeros(4, dtype=torch.int64))
    made = generate(generator, codec, alike).values
    for row in range(1, 4):
        assert not torch.equal(made[row], made[0])
    with torch.no_grad():
        same = last(generator.steps(alike, Sampling(), Noise(0, torch.zeros(4, dtype=torch.int64)), codec)).values
    assert_same(same, same[:1].expand_as(same))
    assert_same(same[0], made[0])


@torch.no_grad()
def test_the_latents_of_a_gan_are_one_row_a_sample() -> None:
    seen: list[Tensor] = []
    torch.manual_seed(0)
    model = gan.Config.tiny().build(TokenLayout(((16, 16),), 3, None, IMAGE), CLASSES).eval()
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    last(model.steps(condition(6), Sampling(temperature=0.5), noise(6), None))
    assert torch.equal(seen[0], 0.5 * noise(6).normal(8))
    last(model.steps(condition(6), Sampling(truncation=0.3), noise(6), None))
    assert float(seen[1].abs().max()) <= 0.3
    assert len(seen[1].unique(dim=0)) == 6
