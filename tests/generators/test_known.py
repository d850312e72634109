"""Known tokens in each family's own way: RePaint, diffusion trained with masks, raster orders."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from diffusers import RePaintScheduler
from helpers.generators import CLASSES, condition, generate, networks, noise, randomise_zeros, real_tokens, tokenizer
from torch import Tensor

from artok.config import validate
from artok.generators import diffusion, raster
from artok.generators.networks.base import NetworkConfig
from artok.generators.raster_decoder import given_codes
from artok.layout import Condition, TokenLayout, Tokens, last
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.repaint import Solve, jumps, noised, repaint
from artok.sampling.schedules import Level, Levels
from artok.sampling.settings import Sampling
from artok.sampling.solvers import Denoised, Draw, Options, States, ddpm
from artok.tokenizers.base import Tokenizer

CHAIN = DiffusionConfig(schedule="linear", timesteps=100)


# ---------------------------------------------------------------------------------------------- RePaint


@pytest.mark.parametrize(
    ("steps", "length", "times"), [(10, 5, 2), (20, 5, 4), (20, 10, 3), (25, 10, 2), (7, 3, 1), (5, 9, 4)]
)
def test_the_jumps_are_those_of_diffusers(steps: int, length: int, times: int) -> None:
    scheduler = RePaintScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(steps, jump_length=length, jump_n_sample=times)
    levels = (scheduler.timesteps // (100 // steps)).tolist()
    denoised = [level for level, before in zip(levels, [steps, *levels], strict=False) if level < before]
    runs = jumps(steps, length, times)
    assert [level for high, low, _ in runs for level in range(high, low - 1, -1)] == denoised
    raised = sum(later > level for level, later in itertools.pairwise(levels))
    assert length * sum(repeats for *_, repeats in runs) == raised


def test_a_jump_back_is_the_forward_process_of_diffusers() -> None:
    """Its `undo_step` applies one beta after another; their product is one step with the same mean and variance."""
    scheduler = RePaintScheduler(num_train_timesteps=100, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    levels = CHAIN.training_levels()
    for s, t in [(0, 1), (3, 40), (20, 99)]:
        signal, variance = 1.0, 0.0
        for beta in scheduler.betas[s + 1 : t + 1].double().tolist():
            signal, variance = signal * math.sqrt(1 - beta), variance * (1 - beta) + beta
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        # the betas of diffusers are float32, each with a relative error of 2^-24, of which t - s add up
        rtol = 100 * 2.0**-23
        assert float(noised(one, levels[s], levels[t], zero)) == pytest.approx(signal, rel=rtol)
        assert float(noised(zero, levels[s], levels[t], one)) == pytest.approx(math.sqrt(variance), rel=rtol)


def solve_with(clean: Tensor, known: Tensor) -> Solve:
    """DDPM's solver of a network that predicts 0, with the known values put in."""

    def solve(x: Tensor, levels: Levels, draw: Draw, done: int) -> States:
        def denoise(state: Tensor, level: Level, to: Level) -> Denoised:
            return Denoised(torch.where(known, clean, 0.0))

        return ddpm(denoise, x, levels, draw, Options())

    return solve


def test_the_known_part_of_the_state_follows_the_forward_process() -> None:
    """At each level it is signal * clean + sigma * noise: of N numbers the mean is within 5 deviations, sigma /
    sqrt(N), and so is the variance, sqrt(2 / N) of itself."""
    count, value = 40_000, 1.5
    random = torch.Generator().manual_seed(0)
    clean, known = torch.full((1, count), value), torch.ones(1, count, dtype=torch.bool)
    levels = CHAIN.sampling_levels(10)

    def draw() -> Tensor:
        return torch.randn(1, count, generator=random)

    start, rows = levels[len(levels) - 1], torch.ones(1, 1, dtype=torch.bool)
    x = start.signal * clean + start.sigma * draw()
    states = list(repaint(solve_with(clean, known), x, levels, 3, 2, draw, draw, rows))
    reached = [low for high, end, _ in jumps(10, 3, 2) for low in range(high, end - 1, -1)]
    assert len(states) == len(reached)
    for (state, _), index in zip(states, reached, strict=True):
        level = levels[index - 1]
        assert abs(float(state.mean()) - level.signal * value) <= 5 * level.sigma / count**0.5 + 1e-6
        assert abs(float(state.var()) - level.sigma_squared) <= 5 * level.sigma_squared * (2 / count) ** 0.5 + 1e-6
    assert torch.equal(states[-1][0], clean)


def test_rows_without_known_tokens_are_left_as_the_first_runs_made_them() -> None:
    """Their noise is that of plain sampling, whatever their neighbours repeat."""
    generator, codec = build(next(iter(networks()))[1], inpaint=False)
    tokens = real_tokens(codec, 2)
    known = torch.zeros(2, codec.layout.length, dtype=torch.bool)
    known[0, ::2] = True
    sampling = Sampling(jump_length=2, jump_n_sample=3)
    mixed = generate(generator, codec, replace(condition(2), known=replace(tokens, known=known)), sampling)
    plain = generate(generator, codec, condition(2), sampling)
    torch.testing.assert_close(mixed.values[1], plain.values[1], rtol=0, atol=1e-5)
    assert not torch.equal(mixed.values[0], plain.values[0])


def test_going_back_changes_the_hidden_part_and_costs_evaluations() -> None:
    generator, codec = build(next(iter(networks()))[1], inpaint=False)
    given = replace(condition(2), known=half_known(real_tokens(codec, 2)))
    made = {}
    for times in (1, 3):
        sampling = Sampling(jump_length=2, jump_n_sample=times)
        with torch.no_grad():
            made[times] = list(generator.steps(given, sampling, noise(2), codec))
        assert len(made[times]) == 10 + 2 * (times - 1) * 4  # jumps to 0, 2, 4 and 6 of 10 steps
    assert not torch.equal(made[1][-1].values, made[3][-1].values)


# ---------------------------------------------------------------------------------------------- trained with masks


def build(network: NetworkConfig, inpaint: bool) -> tuple[diffusion.LatentDiffusion, Tokenizer]:
    codec = tokenizer("conv-gaussian")
    torch.manual_seed(0)
    config = diffusion.Config(
        network=network, inpaint=inpaint, diffusion=DiffusionConfig(timesteps=50, variance="learned", steps=10)
    )
    built = config.build(codec.layout, CLASSES).eval()
    randomise_zeros(built)
    if inpaint:
        torch.nn.init.zeros_(built.network.given.weight)
    return built, codec


def half_known(tokens: Tokens) -> Tokens:
    known = torch.rand(tokens.values.shape[:2], generator=torch.Generator().manual_seed(2)) < 0.5
    return replace(tokens, known=known)


NETWORKS = {name: network for name, network in networks() if network.kind in ("unet", "dit")}


@pytest.fixture(params=[name for name in NETWORKS if name.endswith(("unet", "cross"))])
def network(request: pytest.FixtureRequest) -> NetworkConfig:
    return NETWORKS[request.param]


@torch.no_grad()
def test_a_fresh_input_for_known_tokens_changes_nothing(network: NetworkConfig) -> None:
    """The weights are those of a model without it, drawn in the same order, and the new ones are zero."""
    plain, codec = build(network, inpaint=False)
    filling, _ = build(network, inpaint=True)
    filling.load_state_dict(plain.state_dict(), strict=False)
    torch.manual_seed(0)
    before = plain.config.build(codec.layout, CLASSES).state_dict()
    torch.manual_seed(0)
    after = filling.config.build(codec.layout, CLASSES).state_dict()
    new = after.keys() - before.keys()
    assert len(new) == 1 and not after[new.pop()].any()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    tokens = real_tokens(codec, 3)
    given = replace(condition(3), known=half_known(tokens))
    assert given.known is not None
    hidden = ~given.known.flags
    assert torch.equal(
        generate(filling, codec, given).values[hidden], generate(plain, codec, condition(3)).values[hidden]
    )
    losses = [
        model(tokens, asked, noise(3), codec)["mse"] for model, asked in ((filling, given), (plain, condition(3)))
    ]
    assert torch.equal(*losses)


def test_a_diffusion_trained_with_masks_reads_the_known_tokens_and_no_others(network: NetworkConfig) -> None:
    filling, codec = build(network, inpaint=True)
    tokens = real_tokens(codec, 3)
    known = half_known(tokens)
    given = replace(condition(3), known=known)
    filling(tokens, given, noise(3), codec)["mse"].backward()
    weight = filling.network.given.weight
    assert weight.grad is not None and bool(weight.grad.any())
    randomise_zeros(filling)
    made = generate(filling, codec, given).values
    flags = known.flags[..., None]
    assert torch.equal(made[known.flags], known.values[known.flags])
    elsewhere = replace(known, values=torch.where(flags, known.values, 9.0))
    assert torch.equal(generate(filling, codec, replace(given, known=elsewhere)).values, made)
    moved = replace(known, values=torch.where(flags, known.values + 1, known.values))
    assert not torch.equal(
        generate(filling, codec, replace(given, known=moved)).values[~known.flags], made[~known.flags]
    )
    nothing = replace(known, known=torch.zeros_like(known.flags))
    assert torch.equal(
        generate(filling, codec, replace(given, known=nothing)).values, generate(filling, codec, condition(3)).values
    )


@torch.no_grad()
def test_its_state_is_the_networks_everywhere_as_in_training(network: NetworkConfig) -> None:
    """The known tokens of an image with a hole are an input, and not what the state is moved to."""
    filling, codec = build(network, inpaint=True)
    known = half_known(real_tokens(codec, 3))
    far = replace(known, values=known.values + 50)
    given = replace(condition(3), known=far)
    free = generate(filling, codec, condition(3)).values  # the input's weights are zero
    assert torch.equal(generate(filling, codec, given).values[~known.flags], free[~known.flags])


# ---------------------------------------------------------------------------------------------- raster orders

ORDERED = {
    "one code": TokenLayout(((3, 4),), 4, 32, (1, 12, 16)),
    "two codes": TokenLayout(((3, 4),), 4, 32, (1, 12, 16), codes=2),
}


def ordered(layout: TokenLayout, order: str) -> raster.Raster:
    torch.manual_seed(0)
    section = {"kind": "raster", "depth": 2, "width": 24, "heads": 2, "multiple_of": 8, "order": order}
    section |= {"target_init": 0.5}
    built = validate(raster.Config, section, "test").build(layout, 5).eval()
    torch.nn.init.normal_(built.head.weight, std=1.0)
    return built


def codes_of(layout: TokenLayout, count: int = 3) -> Tokens:
    assert layout.vocab is not None
    shape = (count, layout.length, layout.codes)
    values = torch.randint(0, layout.vocab, shape, generator=torch.Generator().manual_seed(1))
    return Tokens(values, layout)


LABELS = Condition(torch.tensor([0, 3, 4]))


@pytest.mark.parametrize("layout", ORDERED.values(), ids=ORDERED.keys())
@torch.no_grad()
def test_decoding_known_tokens_first_equals_one_pass_in_that_order(layout: TokenLayout) -> None:
    built, tokens = ordered(layout, "known_first"), codes_of(layout)
    known = half_known(tokens)
    given = replace(LABELS, known=known)
    made = last(built.steps(given, Sampling(temperature=0), noise(3), None))
    order = raster.known_first(known)
    assert order is not None
    flat = raster.in_order(made.values, order).flatten(1)
    logits = built.logits(flat[:, :-1], built.context(LABELS).left_padded(), order=order)
    hidden = ~given_codes(known, order)
    assert torch.equal(logits.argmax(-1)[hidden], flat[hidden]) and hidden.any()
    assert torch.equal(made.values[known.flags], tokens.values[known.flags])


@pytest.mark.parametrize("layout", ORDERED.values(), ids=ORDERED.keys())
@torch.no_grad()
def test_the_likelihood_under_an_order_is_the_product_of_its_steps(layout: TokenLayout) -> None:
    """Each factor is computed from the codes before it alone."""
    built, tokens = ordered(layout, "random"), codes_of(layout)
    order = noise(3).permutation(layout.length)
    flat, context = raster.in_order(tokens.values, order).flatten(1), built.context(LABELS).left_padded()
    total = torch.zeros(3, dtype=torch.float64)
    for step in range(flat.shape[1]):
        logits = built.logits(flat[:, :step], context, order=order)[:, -1]
        total += logits.log_softmax(-1).gather(1, flat[:, step : step + 1])[:, 0].double()
    found = built.log_likelihood(tokens, LABELS, None, order)
    torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-4)
    plain = torch.arange(layout.length).expand(3, -1)
    torch.testing.assert_close(
        built.log_likelihood(tokens, LABELS, None, plain), built.log_likelihood(tokens, LABELS, None), rtol=1e-6, atol=0
    )
    assert not torch.allclose(found, built.log_likelihood(tokens, LABELS, None), rtol=1e-3)


@torch.no_grad()
def test_probabilities_under_any_order_sum_to_one() -> None:
    layout = TokenLayout(((1, 3),), 4, 3, (1, 4, 12))
    built = ordered(layout, "random")
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))[..., None]
    given = Condition(torch.full((27,), 2))
    for places in itertools.permutations(range(3)):
        order = torch.tensor(places).expand(27, -1)
        total = built.log_likelihood(Tokens(every, layout), given, None, order).exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_training_on_random_orders_is_the_likelihood_under_each_images_own() -> None:
    layout = ORDERED["one code"]
    built, tokens = ordered(layout, "random"), codes_of(layout)
    nll = built(tokens, LABELS, noise(3), None)["nll"]
    order = noise(3).permutation(layout.length)
    expected = -built.log_likelihood(tokens, LABELS, None, order).mean() / layout.length
    assert float(nll) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_training_with_masks_predicts_hidden_codes_from_the_known_tokens_given() -> None:
    """What is known is read as encoded from the image with a hole, and the image's own hidden codes are the target."""
    layout = ORDERED["one code"]
    built, tokens = ordered(layout, "known_first"), codes_of(layout)
    shifted = replace(tokens, values=(tokens.values + 1) % 32)
    known = half_known(shifted)
    order = raster.known_first(known)
    assert order is not None
    nll = built(tokens, replace(LABELS, known=known), noise(3), None)["nll"]
    read = replace(tokens, values=torch.where(known.flags[..., None], shifted.values, tokens.values))
    flat = raster.in_order(read.values, order).flatten(1)
    logits = built.logits(flat[:, :-1], built.context(LABELS).left_padded(), order=order)
    nats = -logits.log_softmax(-1).gather(-1, flat[..., None])[..., 0]
    hidden = ~given_codes(known, order)
    expected = ((nats * hidden).sum(1) / hidden.sum(1)).mean()
    assert float(nll) == pytest.approx(float(expected), rel=1e-5)
