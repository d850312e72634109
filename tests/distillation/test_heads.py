"""Methods of distillation on the diffusion head of MAR, which they train without a teacher."""

from __future__ import annotations

import pytest
import torch
from helpers.generators import CLASSES, condition, generate, noise, randomise_zeros, real_tokens, tokenizer
from helpers.students import KINDS, method_of, student_of
from torch import Tensor

from artok.config import find
from artok.distillation.base import student_of as trained_part
from artok.generators.patched import PatchedConfig, PatchedGenerator
from artok.layout import Condition
from artok.nn.time import IntervalEmbedding, TimeEmbedding
from artok.noise import Noise
from artok.sampling.settings import Sampling

CODEC, ROWS = "conv-gaussian", 8
ALONE = [kind for kind in KINDS if not method_of(kind).needs_teacher]
CASES = [(family, kind) for family in ("mar", "causal_mar") for kind in ALONE]


def student(family: str, kind: str) -> PatchedGenerator:
    config = find("generators", family).tiny()
    assert isinstance(config, PatchedConfig)
    method, codec = method_of(kind), tokenizer(CODEC)
    torch.manual_seed(0)
    built = config.model_copy(update={"diffusion": student_of(method)}).build(codec.layout, CLASSES)
    assert isinstance(built, PatchedGenerator)
    randomise_zeros(built)
    built.attach_objective(method.build(trained_part(built), None))  # type: ignore[arg-type]
    return built


def gradients(family: str, kind: str, parts: int) -> Tensor:
    built, tokens = student(family, kind), real_tokens(tokenizer(CODEC), ROWS)
    for part in torch.arange(ROWS).chunk(parts):
        losses = built(tokens[part], condition(ROWS)[part], Noise(0, part), None)
        (torch.stack(list(losses.values())).sum() / parts).backward()
    assert all(weight.grad is not None for weight in built.parameters())
    return torch.cat([weight.grad.flatten() for weight in built.parameters() if weight.grad is not None])


def test_there_are_methods_without_a_teacher() -> None:
    assert {"consistency", "meanflow", "shortcut"} <= set(ALONE)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_gradients_reach_every_weight_and_add_up_over_parts(family: str, kind: str) -> None:
    whole = gradients(family, kind, 1)
    assert whole.norm() > 1e-3
    torch.testing.assert_close(gradients(family, kind, 2), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), CASES)
@torch.no_grad()
def test_a_head_samples_in_one_step_guided_or_not(family: str, kind: str) -> None:
    built, codec = student(family, kind).eval(), tokenizer(CODEC)
    found = [generate(built, codec, condition(3), Sampling(cfg_scale=scale, head_steps=1)).values for scale in (1, 2)]
    assert all(each.isfinite().all() for each in found) and not torch.equal(*found)


@torch.no_grad()
def test_one_step_of_a_head_is_its_average_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """x at time 1 minus the average velocity from 1 to 0, under the z of each row."""
    built = student("causal_mar", "meanflow").eval()
    head, z = built.head, torch.randn(2, 3, built.input.out_features, generator=torch.Generator().manual_seed(0))
    found = head.sample(z, 1.0, Sampling(head_steps=1), noise(2))
    start = noise(2).normal(3, head.width).flatten(0, 1)
    times = torch.tensor([[1000.0, 0.0]]).expand(6, 2)
    average = head.under(z.flatten(0, 1)[:, None])(start[:, None], times)[:, 0]
    torch.testing.assert_close(found.flatten(0, 1), start - average)
    assert isinstance(head.net.time, IntervalEmbedding)
    assert isinstance(student("mar", "consistency").head.net.time, TimeEmbedding)


def test_a_head_learns_every_masked_token_under_its_own_condition() -> None:
    """As many rows of each image, each with its own noise, and the z of its place."""
    built = student("causal_mar", "meanflow")
    seen: list[tuple[Tensor, Tensor, Noise]] = []

    def remember(x: Tensor, z: Tensor, rows: Noise, codec: None) -> dict[str, Tensor]:
        seen.append((x, z, rows))
        return {"loss": x.sum() + z.sum()}

    built.attach_objective(remember)  # type: ignore[arg-type]
    tokens = real_tokens(tokenizer(CODEC), 2)
    built(tokens, condition(2), noise(2), None)
    ((x, z, rows),) = seen
    patches, draws = built.patches(tokens), built.draws
    assert torch.equal(x[:, 0], patches.flatten(0, 1).repeat_interleave(draws, 0))
    wanted = built.conditions(patches[:, :-1], built.context(condition(2)))  # type: ignore[operator]
    torch.testing.assert_close(z[:, 0], wanted.flatten(0, 1).repeat_interleave(draws, 0))
    drawn = rows.uniform()
    assert len(drawn) == len(x) and len(drawn.unique()) == len(drawn)


def test_streams_of_a_split_are_those_of_their_samples() -> None:
    whole, part = noise(4).split(3).normal(2), noise(4)[torch.tensor([2])].split(3).normal(2)
    assert torch.equal(whole[6:9], part) and whole.shape == (12, 2) and len(whole.unique()) == 24


def test_masked_tokens_are_chosen_by_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    built = student("mar", "meanflow")
    counted: list[int] = []
    built.attach_objective(lambda x, *_: counted.append(len(x)) or {"loss": x.sum()})  # type: ignore[arg-type,func-returns-value]
    built(real_tokens(tokenizer(CODEC), 3), Condition(torch.zeros(3, dtype=torch.int64)), noise(3), None)
    least = -(-int(0.7 * built.length * 10) // 10)
    assert counted == [3 * least * built.draws]
