"""Schedules, targets and solvers: closed forms, the schedulers of `diffusers`, and Gaussian targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from pydantic import ValidationError
from torch import Tensor

from artok.errors import ConfigError
from artok.sampling.diffusion import Diffusion, DiffusionConfig, starting_noise
from artok.sampling.schedules import CLEAN, Level, Levels, betas, chain, choose_steps, straight, to_zero_terminal
from artok.sampling.settings import Sampling
from artok.sampling.solvers import SOLVERS, Denoised, Options, SolverName, ancestral, evaluations
from artok.sampling.targets import Target, min_snr_weights, regression_target, to_clean, to_noise, transition

TARGETS: list[Target] = ["epsilon", "x0", "v", "velocity"]
DIFFUSERS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
EXACT = {"rtol": 1e-12, "atol": 0.0}


def linear(steps: int = 1000) -> Levels:
    return chain(betas("linear", steps, 1e-4, 0.02))


# ------------------------------------------------------------------------------------------------- closed forms


def test_schedules_in_closed_form() -> None:
    t = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(betas("linear", 1000, 1e-4, 0.02), 1e-4 + (0.02 - 1e-4) * t / 999, **EXACT)
    roots = math.sqrt(8.5e-4) + (math.sqrt(0.012) - math.sqrt(8.5e-4)) * t / 999
    torch.testing.assert_close(betas("scaled_linear", 1000, 8.5e-4, 0.012), roots.square(), **EXACT)
    cosine = chain(betas("cosine", 1000, 0, 0))
    expected = (
        torch.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2).square() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    )
    torch.testing.assert_close(cosine.signal_squared[:-1], expected[:-1], rtol=1e-9, atol=0)
    assert float(betas("cosine", 1000, 0, 0).max()) == 0.999
    path = straight(torch.tensor([0.25, 1.0]))
    assert (path[0].signal, path[0].sigma, path[0].time) == (0.75, 0.25, 250.0)
    assert (path[1].signal, path[1].sigma, path[1].time) == (0.0, 1.0, 1000.0)
    with pytest.raises(ValueError, match="no chain"):
        betas("straight", 10, 0.1, 0.2)


def test_a_zero_terminal_chain_ends_without_signal() -> None:
    levels = to_zero_terminal(linear())
    assert float(levels.signal_squared[-1]) == 0
    torch.testing.assert_close(levels.signal_squared[0], linear().signal_squared[0], **EXACT)
    assert (levels.signal_squared.diff() < 0).all()
    assert levels.select([0, 500, 999])[2].signal_squared == 0
    assert transition(levels[999], levels[998]).from_clean == pytest.approx(levels[998].signal)


@pytest.mark.parametrize("index", [0, 1, 500, 999])
def test_the_posterior_on_a_chain_in_closed_form(index: int) -> None:
    """Ho et al. 2020, equations 6 and 7."""
    beta = betas("linear", 1000, 1e-4, 0.02)
    alpha_bar = (1 - beta).cumprod(0)
    before = float(alpha_bar[index - 1]) if index else 1.0
    now, b = float(alpha_bar[index]), float(beta[index])
    step = transition(linear()[index], linear()[index - 1])
    assert step.added == pytest.approx(b, abs=1e-12)
    assert step.from_clean == pytest.approx(math.sqrt(before) * b / (1 - now), abs=1e-12)
    assert step.from_noisy == pytest.approx(math.sqrt(1 - b) * (1 - before) / (1 - now), abs=1e-12)
    assert step.variance == pytest.approx((1 - before) / (1 - now) * b, abs=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("level", [linear()[10], linear()[900], straight(torch.tensor([0.3]))[0]], ids=str)
def test_a_true_prediction_gives_back_clean_tokens_and_noise(target: Target, level: Level) -> None:
    clean, noise = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = level.signal * clean + level.sigma * noise
    target_value = regression_target(target, clean, noise, level.signal, level.sigma)
    denoised = to_clean(target, target_value, x, level.signal, level.sigma)
    torch.testing.assert_close(denoised, clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_noise(denoised, x, level.signal, level.sigma), noise, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("levels", [linear(), straight(torch.linspace(0.01, 0.99, 99))], ids=["chain", "straight"])
@pytest.mark.parametrize("target", TARGETS)
def test_min_snr_weights_give_every_target_the_same_loss(target: Target, levels: Levels) -> None:
    signal, sigma = levels.signal_squared.sqrt(), levels.sigma_squared.sqrt()
    clean = torch.randn(len(levels), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wrong, noise = clean + 0.1, clean.flip(0)
    x = signal * clean + sigma * noise
    error = regression_target(target, clean, noise, signal, sigma) - regression_target(
        target, wrong, (x - signal * wrong) / sigma, signal, sigma
    )
    snr = signal.square() / sigma.square()
    weighted = min_snr_weights(target, signal, sigma, 5.0) * error.square()
    torch.testing.assert_close(weighted, snr.clamp(max=5.0) * 0.01, rtol=1e-9, atol=1e-12)


def test_which_steps_a_shortened_chain_keeps() -> None:
    assert choose_steps(1000, 10, "linspace") == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert choose_steps(1000, 10, "leading") == list(range(0, 1000, 100))
    assert choose_steps(10, 1, "leading") == [0]
    assert choose_steps(1000, 1000, "linspace") == list(range(1000))
    assert choose_steps(1000, 1, "linspace") == [999]
    with pytest.raises(ConfigError, match="1001 sampling steps are more than the 1000"):
        choose_steps(1000, 1001, "linspace")
    with pytest.raises(ConfigError, match="no whole stride"):
        choose_steps(1000, 999, "leading")


# ------------------------------------------------------------------------------------------------- diffusers


def network(x: Tensor, time: float) -> Tensor:
    """Stands for a trained network: smooth, and of the state and the time."""
    return 0.3 * x.roll(1, -1) + 0.2 * torch.tanh(x) * math.cos(time / 300)


def ours(
    solver: SolverName, levels: Levels, x: Tensor, target: Target, noises: list[Tensor], **options: object
) -> Tensor:
    drawn = iter(noises)

    def denoise(state: Tensor, level: Level, _: Level) -> Denoised:
        return Denoised(to_clean(target, network(state, level.time), state, level.signal, level.sigma))

    given = Options(**options)  # type: ignore[arg-type]
    states = list(SOLVERS[solver](denoise, x, levels, lambda: next(drawn), given))
    assert len(states) == evaluations(solver, len(levels))
    torch.testing.assert_close(*states[-1])  # every solver ends where it predicts
    return states[-1][0]


def fresh(count: int) -> tuple[Tensor, list[Tensor]]:
    rng = torch.Generator().manual_seed(3)
    x, *noises = torch.randn(count + 1, 4, 6, dtype=torch.float64, generator=rng)
    return x, noises


class Draws:
    """Replaces the noise that a scheduler draws."""

    def __init__(self, noises: list[Tensor]) -> None:
        self.left = iter(noises)

    def __call__(self, *_: object, **__: object) -> Tensor:
        return next(self.left)


@pytest.mark.parametrize("target", DIFFUSERS)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm_is_that_of_diffusers(target: Target, variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"posterior": "fixed_small", "beta": "fixed_large"}[variance]
    theirs = DDPMScheduler(
        variance_type=kind, prediction_type=DIFFUSERS[target], clip_sample=False, timestep_spacing="leading"
    )
    theirs.set_timesteps(20)
    x, noises = fresh(20)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", Draws(noises))
    state = x
    for t in theirs.timesteps:
        state = theirs.step(network(state, float(t)), t, state).prev_sample
    levels = linear().select(sorted(theirs.timesteps.tolist()))
    result = ours("ddpm", levels, x, target, noises, variance=variance)
    torch.testing.assert_close(result, state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", DIFFUSERS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_that_of_diffusers(target: Target, eta: float) -> None:
    theirs = DDIMScheduler(prediction_type=DIFFUSERS[target], clip_sample=False, timestep_spacing="leading")
    theirs.set_timesteps(20)
    x, noises = fresh(20)
    state, drawn = x, iter(noises)
    for t in theirs.timesteps:
        extra = next(drawn) if eta else None
        state = theirs.step(network(state, float(t)), t, state, eta=eta, variance_noise=extra).prev_sample
    levels = linear().select(sorted(theirs.timesteps.tolist()))
    torch.testing.assert_close(ours("ddim", levels, x, target, noises, eta=eta), state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("solver", "scheduler"), [("euler", EulerDiscreteScheduler), ("heun", HeunDiscreteScheduler)])
@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_euler_and_heun_are_those_of_diffusers(solver: SolverName, scheduler: Callable, target: Target) -> None:
    theirs = scheduler(
        beta_start=1e-4, beta_end=0.02, prediction_type=DIFFUSERS[target], timestep_spacing="leading", steps_offset=0
    )
    theirs.set_timesteps(20)
    x, _ = fresh(0)
    first = theirs.sigmas[0].double()
    state = x * (first**2 + 1).sqrt()  # theirs is x / signal
    for t in theirs.timesteps:
        out = network(theirs.scale_model_input(state, t), float(t))
        state = theirs.step(out, t, state).prev_sample
    levels = linear().select(sorted(set(theirs.timesteps.long().tolist())))
    torch.testing.assert_close(ours(solver, levels, x, target, []), state.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", DIFFUSERS)
def test_dpm_solver_is_that_of_diffusers(target: Target) -> None:
    theirs = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, prediction_type=DIFFUSERS[target], timestep_spacing="linspace"
    )
    theirs.set_timesteps(12)
    x, _ = fresh(0)
    state = x
    for t in theirs.timesteps:
        state = theirs.step(network(state, float(t)), t, state).prev_sample
    levels = linear().select(sorted(theirs.timesteps.tolist()))
    torch.testing.assert_close(ours("dpm++", levels, x, target, []), state, rtol=1e-3, atol=1e-3)


def test_flow_matching_is_that_of_diffusers() -> None:
    theirs = FlowMatchEulerDiscreteScheduler()
    sigmas = [1 - index / 10 for index in range(10)]
    theirs.set_timesteps(sigmas=sigmas)
    x, _ = fresh(0)
    state = x.float()
    for t in theirs.timesteps:
        state = theirs.step(network(state, float(t)), t, state).prev_sample
    result = ours("euler", straight(torch.tensor(sorted(sigmas))), x, "velocity", [])
    torch.testing.assert_close(result.float(), state, rtol=1e-4, atol=1e-4)


def test_heun_on_the_straight_path_is_the_trapezoid_rule() -> None:
    x, _ = fresh(0)
    times = [1.0, 0.7, 0.4, 0.1, 0.0]
    state = x
    for t, s in pairwise(times):
        slope = network(state, 1000 * t)
        ahead = network(state + (s - t) * slope, 1000 * s) if s else slope
        state = state + (s - t) * (slope + ahead) / 2
    levels = straight(torch.tensor(sorted(times[:-1])))
    torch.testing.assert_close(ours("heun", levels, x, "velocity", []), state, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_start_from_no_signal_at_all(solver: SolverName) -> None:
    levels = to_zero_terminal(linear()).select(choose_steps(1000, 10, "linspace"))
    x, noises = fresh(10)
    clean = torch.full_like(x, 0.7)

    def sure(state: Tensor, level: Level, _: Level) -> Denoised:
        return Denoised(clean)

    *_, (last, _) = SOLVERS[solver](sure, x, levels, iter(noises).__next__, Options())
    torch.testing.assert_close(last, clean)


# ------------------------------------------------------------------------------------------------- a Gaussian target


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.sqrt().diag() @ vectors.T


@pytest.mark.parametrize("path", ["chain", "straight"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gaussian_is_sampled_with_its_mean_and_covariance(solver: SolverName, path: str) -> None:
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    steps = 250

    def draw() -> Tensor:
        return torch.randn(20_000, 2, dtype=torch.float64, generator=rng)

    def exactly(x: Tensor, level: Level, end: Level) -> Denoised:
        """E[x_0 | x] of the target, or where the path of x ends, as consistency models predict."""
        total = level.signal_squared * covariance + level.sigma_squared * torch.eye(2, dtype=torch.float64)
        gain = level.signal * covariance @ torch.linalg.inv(total)
        if solver == "consistency":
            assert end == CLEAN
            gain = root(covariance) @ torch.linalg.inv(root(total))
        return Denoised(mean + (x - level.signal * mean) @ gain.T)

    if path == "straight":
        levels = straight(torch.arange(1, steps + 1) / steps)
    else:
        levels = linear().select(choose_steps(1000, steps, "linspace"))
    *_, (sample, _) = SOLVERS[solver](exactly, draw(), levels, draw, Options())
    torch.testing.assert_close(sample.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(sample.T), covariance, rtol=0, atol=0.05)


# ------------------------------------------------------------------------------------------------- the section


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"schedule": "straight", "prediction_type": "epsilon"}, "does not determine the tokens"),
        ({"zero_terminal_snr": True, "prediction_type": "epsilon"}, "does not determine the tokens"),
        ({"schedule": "straight", "prediction_type": "velocity", "variance": "learned"}, "belong to chains"),
        ({"timesteps": 50, "steps": 51}, "more than the 50 timesteps"),
    ],
)
def test_settings_that_cannot_work_are_refused(section: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DiffusionConfig.model_validate(section)


def test_more_steps_than_the_schedule_has_are_refused_and_the_straight_path_has_any_number() -> None:
    with pytest.raises(ConfigError, match="1200 sampling steps are more than the 1000"):
        DiffusionConfig().plan(Sampling(), 1200)
    config = DiffusionConfig(schedule="straight", prediction_type="velocity", solver="heun", steps=4)
    assert config.plan(Sampling(), 1200) == ("heun", 1200)
    assert config.evaluations(Sampling(), None) == 7
    assert config.evaluations(Sampling(solver="euler"), None) == 4


def test_training_times() -> None:
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    steps = Diffusion(DiffusionConfig()).times(uniform)
    assert steps.index is not None
    assert torch.bincount(steps.index, minlength=1000).unique().tolist() == [100]
    torch.testing.assert_close(steps.signal.square() + steps.sigma.square(), torch.ones(100_000))
    section = {"schedule": "straight", "prediction_type": "velocity", "times": "logit_normal", "logit_mean": 0.5}
    path = Diffusion(DiffusionConfig.model_validate(section)).times(uniform)
    logit = torch.logit(path.sigma.double())
    assert float(logit.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(logit.std()) == pytest.approx(1.0, abs=1e-2)
    torch.testing.assert_close(path.time, 1000 * path.sigma)


def test_temperature_acts_on_the_way_or_on_the_start() -> None:
    noise = torch.ones(2, 3)
    cool = Sampling(temperature=0.5)
    assert torch.equal(starting_noise(noise, "ddpm", cool), noise)
    assert torch.equal(starting_noise(noise, "ddim", cool), noise / 2)
    assert torch.equal(starting_noise(noise, "ddim", Sampling(temperature=0.5, eta=1.0)), noise)
    assert torch.equal(starting_noise(noise, "heun", cool), noise / 2)


def test_fixed_variances_of_a_chain() -> None:
    """FIXED_LARGE of improved-diffusion: betas, but for the cleanest level, which has the second posterior variance."""
    levels = DiffusionConfig(schedule="linear", variance="beta").sampling_levels(10)
    x = torch.zeros(1, 2, 3)
    steps = [transition(levels[index], levels[index - 1]) for index in range(10)]
    for index in range(10):
        _, large = ancestral(Denoised(x, None), x, levels, index, Options(variance="beta"))
        wanted_large = steps[1].variance if index == 0 else steps[index].added
        assert float(large.exp().flatten()[0]) == pytest.approx(wanted_large, rel=1e-5)


def test_the_clean_end() -> None:
    assert (CLEAN.signal, CLEAN.sigma) == (1.0, 0.0)
    assert linear()[-1] == CLEAN
