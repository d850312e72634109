"""Adversarial distillation: what the heads see, their penalty, and the gap of distribution matching."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.generators import condition, networks, noise, real_tokens, tokenizer
from helpers.students import TEACHER, model
from torch import Tensor, nn

from artok.distillation import adversarial
from artok.distillation.base import Rows, Teacher
from artok.generators.networks import unet
from artok.generators.networks.base import NetworkConfig
from artok.layout import Condition

CODEC = "conv-gaussian"
NETWORKS = {**dict(networks()), "unet": unet.Config.tiny()}
ROWS = 8


def method(network: NetworkConfig | None = None, **settings: object) -> adversarial.Adversarial:
    given = {} if network is None else {"network": network}
    layout = tokenizer(CODEC).layout
    teacher, student = (model(TEACHER, layout, seed, **given) for seed in (1, 2))
    config = adversarial.Config.model_validate({"hidden": 8, **settings})
    return config.build(student, Teacher(teacher.eval().requires_grad_(False)))


def vectors(seed: float = 0.0) -> Tensor:
    return real_tokens(tokenizer(CODEC), ROWS).values + seed


def verdict(built: adversarial.Adversarial, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    return built.critic(real, fake, condition(ROWS), noise(ROWS), 0, 0.0).losses


def test_equal_samples_get_equal_scores() -> None:
    """Real and generated tokens get the same noise; scores within 1 of 0 then give a hinge loss of exactly 1."""
    losses = verdict(method(), vectors(), vectors())
    torch.testing.assert_close(losses["critic"], torch.tensor(1.0))
    assert (verdict(method(), vectors(), vectors(0.5))["critic"] - 1).abs() > 1e-3


def test_the_heads_learn_to_tell_samples_apart_and_a_student_to_fool_them() -> None:
    built, fake = method(r1=0), nn.Parameter(vectors(2.0))
    for trained, loss in (
        (list(built.critic.parameters()), lambda: verdict(built, vectors(), fake.detach())["critic"]),
        ([fake], lambda: built.critic.student_loss(fake, condition(ROWS), noise(ROWS))),
    ):
        optimizer, found = torch.optim.Adam(trained, lr=1e-2), []
        for _ in range(20):
            optimizer.zero_grad()
            found.append(loss())
            found[-1].backward()
            optimizer.step()
        assert found[-1] < found[0] - 0.1


def test_the_student_learns_through_the_teacher_and_the_critic_without_the_student() -> None:
    built = method()
    with torch.no_grad():
        fake = built.generate(vectors(), condition(ROWS), noise(ROWS), None)
    torch.stack(list(verdict(built, vectors(), fake).values())).sum().backward()
    assert all(weight.grad is None for weight in built.student.parameters())
    assert all(weight.grad is not None for weight in built.critic.parameters())
    losses = built(vectors(), condition(ROWS), noise(ROWS), None)
    losses["adversarial"].backward()
    assert all(weight.grad is not None for weight in built.student.parameters())
    assert all(weight.grad is None for weight in built.real.model.parameters())


def test_the_penalty_is_that_of_a_linear_head() -> None:
    """The gradient of a linear score is its weight, so the penalty is gamma / 2 of its squared length."""
    built = method(r1=0.6)
    weights = []
    for index in range(len(built.critic.heads)):
        head = nn.Linear(32, 1)
        weights.append(head.weight.square().sum())
        built.critic.heads[index] = Linear(head)
    found = verdict(built, vectors(), vectors(0.5))["r1"]
    torch.testing.assert_close(found, 0.3 * torch.stack(weights).mean())
    assert "r1" not in verdict(method(r1=0), vectors(), vectors(0.5))


class Linear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, seen: Tensor, told: Tensor) -> Tensor:
        return self.layer(seen)[..., 0]


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_the_outputs_of_the_stages(name: str) -> None:
    """One for each stage, (B, places, width); without a trace in the network; the last one of a plain transformer gives
    its output."""
    teacher = method(NETWORKS[name]).real
    at = Rows(torch.full((ROWS,), 300.0), torch.full((ROWS, 1, 1), 0.7), torch.full((ROWS, 1, 1), 0.3))
    found = teacher.features(vectors(), at, condition(ROWS))
    network = teacher.model.network
    assert len(found) == len(network.stages) > 0 and all(each.ndim == 3 and len(each) == ROWS for each in found)
    assert not any(stage._forward_hooks for stage in network.stages)
    if name == "dit-cross":
        context = teacher.model.context(condition(ROWS))
        wanted = network(vectors(), at.time, context)
        last = network.output(found[-1], network.condition(at.time, context)[:, None])  # type: ignore[operator]
        torch.testing.assert_close(last, wanted)


def test_a_model_of_the_samples_that_equals_the_teacher_leaves_no_gap() -> None:
    built = method(distribution_matching=2.0, adversarial=0)
    fake = vectors()
    assert built.critic.samples is not None and not built.critic.heads
    assert not built.gap(fake, condition(ROWS), noise(ROWS), None).any()
    with torch.no_grad():
        for weight in built.critic.samples.parameters():
            weight.mul_(1.5)
    gap = built.gap(fake, condition(ROWS), noise(ROWS), None)
    assert gap.abs().mean() > 1e-3


def test_distribution_matching_moves_a_sample_along_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    built, given = method(distribution_matching=2.0, adversarial=0), vectors(0.3)
    fake = given.clone().requires_grad_(True)
    monkeypatch.setattr(built, "generate", lambda *_: fake)
    monkeypatch.setattr(built, "gap", lambda *_: given)
    losses = built(vectors(), condition(ROWS), noise(ROWS), None)
    assert set(losses) == {"distribution_matching"}
    losses["distribution_matching"].backward()
    torch.testing.assert_close(fake.grad, 2.0 * given / given.numel())


def test_the_gap_is_measured_by_its_own_equation() -> None:
    built = method(distribution_matching=1.0)
    assert built.critic.samples is not None
    with torch.no_grad():
        for weight in built.critic.samples.parameters():
            weight.mul_(1.5)
    fake, draws = vectors(), noise(ROWS)
    found = built.gap(fake, condition(ROWS), noise(ROWS), None)
    t = built.real.model.diffusion.times(draws.uniform()).sigma[:, None, None]
    x = (1 - t) * fake + t * draws.normal(*fake.shape[1:])

    def clean(which: nn.Module) -> Tensor:
        with torch.no_grad():
            return x - t * which.under(condition(ROWS), None)(x, 1000 * t[:, 0, 0])  # type: ignore[operator]

    real, own = clean(built.real.model), clean(built.critic.samples)
    wanted = (own - real) / (fake - real).abs().mean((1, 2), keepdim=True)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_model_of_the_samples_learns_them() -> None:
    built = method(distribution_matching=1.0, adversarial=0)
    losses = verdict(built, vectors(), vectors(0.5))
    assert set(losses) == {"samples_mse"}
    losses["samples_mse"].backward()
    assert built.critic.samples is not None
    assert all(weight.grad is not None for weight in built.critic.samples.parameters())


def test_real_samples_are_the_teachers_where_a_pool_is_asked_for() -> None:
    assert method().teach(condition(4), noise(4), None) is None
    config = method(pool=8, teacher_steps=2)
    made = config.teach(condition(4), noise(4), None)
    assert made is not None
    again = config.real.sample(condition(4), config.config, noise(4).branch("pair"), None)
    assert torch.equal(made.values, again.values)


def test_regression_is_to_the_teachers_sample_of_the_same_noise() -> None:
    """A student that is its teacher in one Euler step has no error, whatever was drawn before."""
    built = method(pool=8, teacher_solver="euler", teacher_steps=1, regression=3.0)
    sample, numbers = built.teach(condition(4), noise(4), None), noise(4)
    assert sample is not None
    numbers.uniform()
    built.student.load_state_dict(built.real.model.state_dict())
    assert built(sample.values, condition(4), numbers, None)["regression"] < 1e-10
    off = built(sample.values + 0.5, condition(4), noise(4), None)["regression"]
    torch.testing.assert_close(off, torch.tensor(0.75))
    for changes in ({"pool": None}, {"pool": 8, "steps": 2}):
        with pytest.raises(ValueError, match="needs a pool and steps 1"):
            adversarial.Config.model_validate({"regression": 1.0, **changes})


def test_in_several_steps_it_starts_from_noisy_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Rows] = []

    def remember(_: object, x: Tensor, at: Rows, *__: object) -> Tensor:
        seen.append(replace(at))
        return x

    monkeypatch.setattr(adversarial, "predict_clean", remember)
    for steps, wanted in ((1, {1.0}), (4, {1.0, 0.75, 0.5, 0.25})):
        given = Condition(torch.zeros(64, dtype=torch.int64))
        method(steps=steps).generate(torch.zeros(64, 16, 4), given, noise(64), None)
        assert set(seen[-1].sigma.flatten().tolist()) == wanted


def test_a_method_without_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="are both 0"):
        adversarial.Config(adversarial=0)
    assert not adversarial.Config().folds_guidance and adversarial.Config(pool=4).folds_guidance
