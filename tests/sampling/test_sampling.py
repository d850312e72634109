"""Drawing tokens: truncation, temperature, inversion; guidance and its schedules."""

from __future__ import annotations

import math

import pytest
import torch

from artok.layout import NO_LABEL, Condition, Text
from artok.sampling.guidance import Guidance, guide, scale_at
from artok.sampling.logits import draw, probabilities, truncate
from artok.sampling.settings import Sampling

LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def kept(top_k: int | None, top_p: float | None) -> list[bool]:
    return truncate(LOGITS, top_k, top_p)[0].isfinite().tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (None, None, [True] * 4),
        (1, None, [True, False, False, False]),
        (3, None, [True, True, True, False]),
        (9, None, [True] * 4),
        (None, 1.0, [True] * 4),
        (None, 0.6, [True, True, False, False]),  # the code that passes 0.6 stays
        (None, 0.01, [True, False, False, False]),
        (2, 0.9, [True, True, False, False]),
        (3, 0.55, [True, False, False, False]),  # of what top-k left, 0.5 / 0.9 is already beyond
    ],
)
def test_truncation_keeps_the_head(top_k: int | None, top_p: float | None, expected: list[bool]) -> None:
    assert kept(top_k, top_p) == expected


def test_ties_at_the_kth_are_all_kept() -> None:
    assert truncate(torch.tensor([1.0, 1.0, 1.0, 0.0]), 2, None).isfinite().tolist() == [True, True, True, False]


def test_temperature_sharpens_and_flattens() -> None:
    cold, hot = probabilities(LOGITS, 0.5, None, None), probabilities(LOGITS, 2.0, None, None)
    torch.testing.assert_close(cold, (LOGITS * 2).softmax(-1))
    assert float(hot.max()) < 0.5 < float(cold.max())


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    for uniform, token in ((0.0, 0), (0.49, 0), (0.51, 1), (0.76, 2), (0.91, 3), (1 - 2**-24, 3)):
        assert int(draw(LOGITS, torch.tensor([uniform]), 1.0, None, None)) == token
    assert int(draw(LOGITS, torch.tensor([1 - 2**-24]), 1.0, 2, None)) == 1  # never a token that was cut off
    assert int(draw(LOGITS, torch.tensor([0.99]), 0.0, None, None)) == 0


def test_a_cut_off_first_token_is_never_drawn() -> None:
    assert int(draw(torch.tensor([[-math.inf, 0.0, 0.0]]), torch.tensor([0.0]), 1.0, None, None)) == 1


def test_the_largest_uniform_number_draws_a_token_whatever_the_rounding_of_the_sum() -> None:
    logits = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits, torch.full((2000,), 1 - 2.0**-24), 1.0, None, None)
    assert int(drawn.max()) < 50


def test_guidance_is_artoks_one_formula() -> None:
    both = torch.tensor([[3.0, 5.0], [1.0, 2.0]])  # the conditional half, then the other
    assert [guide(both, scale).tolist() for scale in (0.0, 1.0, 2.5)] == [[[1, 2]], [[3, 5]], [[6, 9.5]]]
    assert guide(both, 2.5, width=1).tolist() == [[6, 5]]


def test_guidance_drops_labels_and_text_in_the_second_half_alone() -> None:
    text = Text(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    condition = Condition(labels=torch.tensor([4, 7]), text=text, control=torch.ones(2, 1, 4, 4))
    guidance = Guidance(condition, Sampling(cfg_scale=2.0), steps=1)
    both = guidance.condition
    assert both.labels.tolist() == [4, 7, NO_LABEL, NO_LABEL]
    assert both.text.mask.any(1).tolist() == [True, True, False, False]
    assert both.control.all()
    assert guidance.repeat(torch.tensor([[1], [2]]), 0).tolist() == [[1], [2], [1], [2]]
    alone = Guidance(condition, Sampling(), steps=1)
    assert alone.condition is condition
    assert alone(text.values, 0) is alone.repeat(text.values, 0) is text.values


@pytest.mark.parametrize(("caches", "doubled"), [(False, [0, 1, 1, 0, 0]), (True, [1, 1, 1, 0, 0])])
def test_steps_without_guidance_take_the_first_half(caches: bool, doubled: list[bool]) -> None:
    sampling = Sampling(cfg_scale=3.0, cfg_interval=(0.2, 0.6))
    guidance = Guidance(Condition(torch.tensor([4])), sampling, steps=5, caches=caches)
    for step in range(5):
        assert len(guidance.repeat(torch.zeros(1), step)) == 1 + doubled[step]
        assert guidance.take(torch.tensor([1, 2]), step).tolist() == [1, 2][: 1 + doubled[step]]
        assert guidance.take(torch.tensor([1]), 4).tolist() == [1]
        assert len(guidance(torch.zeros(1 + doubled[step]), step)) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3, 3, 3, 3, 3]),
        ({"cfg_schedule": "linear"}, [1, 1.5, 2, 2.5, 3]),
        ({"cfg_schedule": "cosine"}, [1, 1 + (1 - math.sqrt(0.5)), 2, 1 + (1 + math.sqrt(0.5)), 3]),
        ({"cfg_interval": (0.2, 0.8)}, [1, 3, 3, 3, 1]),
    ],
)
def test_schedules(settings: dict, expected: list[float]) -> None:
    sampling = Sampling(cfg_scale=3, **settings)
    assert [scale_at(sampling, step, 5) for step in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize(("interval", "guided"), [((0.0, 0.55), 55), ((0.55, 1.0), 45), ((0.29, 0.58), 29)])
def test_an_interval_holds_its_share_of_the_steps(interval: tuple[float, float], guided: int) -> None:
    sampling = Sampling(cfg_scale=3, cfg_interval=interval)
    assert sum(scale_at(sampling, step, 100) == 3 for step in range(100)) == guided


def test_the_power_bends_the_cosine() -> None:
    sampling = Sampling(cfg_scale=3, cfg_schedule="cosine", cfg_power=2.0)
    assert scale_at(sampling, 1, 3) == pytest.approx(1 + 1 - math.cos(math.pi / 4))


def test_linear_guidance_may_follow_the_share_of_tokens() -> None:
    assert scale_at(Sampling(cfg_scale=3, cfg_schedule="linear"), 0, 4, share=0.25) == 1.5


def test_one_step_gets_the_full_scale_of_a_constant_schedule() -> None:
    assert scale_at(Sampling(cfg_scale=2), 0, 1) == 2
