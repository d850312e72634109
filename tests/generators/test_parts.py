"""Small parts of generators: masks and orders, truncated latents, vectors of codes, guided channels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.generators import CLASSES, condition, noise, randomise_zeros
from helpers.models import IMAGE
from scipy import stats
from torch import Tensor

from artok.errors import ConfigError
from artok.generators import diffusion, mar, var
from artok.generators.diffusion import code_vectors, moments
from artok.generators.gan import truncated_normal
from artok.generators.mar import put, take_positions
from artok.generators.masked import count_steps, even_uniforms, put_unknown_first, schedule, select
from artok.generators.networks import dit
from artok.layout import Condition, TokenLayout, Tokens, last
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.settings import Sampling

LATENTS = TokenLayout(((4, 4),), 4, None, IMAGE)


def test_steps_are_as_asked_and_at_most_one_a_token() -> None:
    assert count_steps(None, 8, 16) == 8
    assert count_steps(None, 64, 16) == 16
    assert count_steps(16, 8, 16) == 16
    with pytest.raises(ConfigError, match="17 sampling steps"):
        count_steps(17, 8, 16)


def test_the_masks_of_all_steps() -> None:
    wanted = [256, *(math.floor(256 * math.cos(math.pi / 2 * step / 8)) for step in range(1, 8)), 0]
    assert schedule(256, 8) == tuple(wanted)
    assert schedule(4, 4) == (4, 3, 2, 1, 0)
    assert schedule(0, 3) == (0, 0, 0, 0)  # all known: nothing left in any step
    assert schedule(2, 4) == (2, 1, 1, 1, 0)


def test_known_positions_go_last_and_keep_their_order() -> None:
    order = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    known = torch.tensor([[True, False, False, True], [False] * 4])
    behind, unknown = put_unknown_first(order, known)
    assert behind.tolist() == [[1, 2, 3, 0], [0, 1, 2, 3]]
    assert unknown == [2, 4]
    assert put_unknown_first(order, None) == (order, [4, 4])


def test_positions_of_rows_that_decide_different_numbers_are_padded() -> None:
    order = torch.tensor([[3, 1, 0, 2], [2, 3, 1, 0]])
    assert take_positions(order, (1, 1), (3, 3)).tolist() == [[1, 0], [3, 1]]
    assert take_positions(order, (1, 2), (4, 3)).tolist() == [[1, 0, 2], [1, 4, 4]]
    x = torch.zeros(2, 4, 1)
    new = torch.tensor([[[1.0], [2], [3]], [[4], [5], [6]]])
    filled = put(x, take_positions(order, (1, 2), (4, 3)), new)
    assert filled[..., 0].tolist() == [[2, 1, 3, 0], [0, 4, 0, 0]]


def test_rows_without_values_select_the_average_number() -> None:
    values, flags = torch.arange(12.0).view(3, 4), torch.tensor([[True, False, True, False]] * 3)
    assert select(values, flags, 0.5).tolist() == [0, 2, 4, 6, 8, 10]
    assert select(values.to("meta"), flags.to("meta"), 0.7).shape == (8,)
    assert select(values.to("meta"), flags.to("meta"), 0.01).shape == (1,)
    assert even_uniforms(4).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert len(even_uniforms()) == 1000


def test_the_expected_share_of_masked_tokens() -> None:
    layout = TokenLayout(((32, 32),), 4, None, IMAGE)
    truncated = stats.truncnorm((0.7 - 1) / 0.25, 0, loc=1, scale=0.25)
    assert mar.Config.tiny().build(layout, 2).expected == pytest.approx(truncated.mean(), abs=1 / 1024)


@pytest.mark.parametrize("limit", [0.3, 2.0])
def test_truncated_latents_have_the_truncated_distribution(limit: float) -> None:
    numbers = truncated_normal(Noise(0, torch.arange(200)), 100, limit)
    assert numbers.shape == (200, 100) and numbers.dtype == torch.float32
    assert float(numbers.abs().max()) <= limit
    assert stats.kstest(numbers.flatten().numpy(), stats.truncnorm(-limit, limit).cdf).pvalue > 1e-3
    assert torch.equal(truncated_normal(noise(3), 4, None), noise(3).normal(4))


def test_lengths_of_vectors_are_never_zero() -> None:
    x = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]]])
    assert var.norm(x)[0, 0, :, 0].tolist() == pytest.approx([5.0, 1e-12])


class Table:
    """A codec of 6 codes at 4 positions: code c stands for (c, 7)."""

    layout = TokenLayout(((2, 2),), 2, 6, IMAGE)

    def embed(self, tokens: Tokens) -> Tensor:
        values = tokens.values[..., 0].float()
        return torch.stack([values, torch.full_like(values, 7.0)], dim=1).unflatten(2, (2, 2))


def test_vectors_of_codes_are_standardised_and_found_again() -> None:
    codec: Any = Table()
    table = code_vectors(codec, torch.device("cpu"))
    assert table.tolist() == [[code, 7] for code in range(6)]
    mean, deviation = moments(table)
    assert mean.tolist() == [2.5, 7]
    assert deviation.tolist() == pytest.approx([math.sqrt(3.5), 1e-6])  # a constant channel is not divided by 0
    config = diffusion.Config.tiny().model_copy(
        update={"network": dit.Config(depth=1, width=32, heads=2, patch_size=1)}
    )
    model = config.build(codec.layout, CLASSES)
    codes = Tokens(torch.tensor([[[0], [3], [5], [2]]]), codec.layout)
    vectors = model.vectors(codes, codec)
    assert vectors[0, :, 0].tolist() == pytest.approx([(code - 2.5) / math.sqrt(3.5) for code in (0, 3, 5, 2)])
    assert torch.equal(model.tokens(vectors + torch.tensor([0.2, 0.0]), codec).values, codes.values)


@torch.no_grad()
def test_only_the_leading_channels_are_guided() -> None:
    section = DiffusionConfig(prediction_type="x0", timesteps=10, steps=1, solver="ddim")
    config = diffusion.Config(network=dit.Config.tiny(), guided_channels=3, diffusion=section)
    torch.manual_seed(0)
    model = config.build(LATENTS, CLASSES).eval()
    randomise_zeros(model)

    def sample(given: Condition, scale: float) -> Tensor:
        return last(model.steps(given, Sampling(cfg_scale=scale), noise(3), None)).values

    plain, null = sample(condition(3), 1.0), sample(condition(3).dropped("labels"), 1.0)
    wanted = torch.cat([(null + 2.5 * (plain - null))[..., :3], plain[..., 3:]], dim=-1)
    torch.testing.assert_close(sample(condition(3), 2.5), wanted, rtol=1e-4, atol=1e-4)
