"""The losses of diffusion models in closed form, the settings that reach sampling, and the published defaults."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from artok.sampling.diffusion import Diffusion, DiffusionConfig
from artok.sampling.schedules import straight
from artok.sampling.settings import Sampling
from artok.sampling.solvers import Options, posterior_log_variance
from artok.sampling.targets import (
    discretised_log_likelihood,
    gaussian_divergence,
    interpolated_log_variance,
    regression_target,
    transition,
)

EXACT = {"rtol": 1e-9, "atol": 1e-12}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- its terms


def test_the_divergence_of_two_gaussians() -> None:
    means, logs = normal(2, 50, seed=1), normal(2, 50, seed=2)
    wanted = kl_divergence(Normal(means[0], (logs[0] / 2).exp()), Normal(means[1], (logs[1] / 2).exp()))
    torch.testing.assert_close(gaussian_divergence(means[0], logs[0], means[1], logs[1]), wanted, **EXACT)


def test_a_learned_variance_lies_between_its_ends() -> None:
    share = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(interpolated_log_variance(share, -4.0, -2.0), torch.tensor([-4.0, -3.0, -2.0]).double())


@pytest.mark.parametrize("mean", [-0.95, 0.1, 0.9])
@pytest.mark.parametrize("log_scale", [-5.0, -2.0, 0.0])
def test_the_masses_of_all_bins_sum_to_one(mean: float, log_scale: float) -> None:
    bins = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_mass = discretised_log_likelihood(bins, torch.full_like(bins, mean), torch.full_like(bins, log_scale))
    assert float(log_mass.exp().sum()) == pytest.approx(1, abs=1e-9)  # bins that meet, and open tails
    gaussian, half = Normal(mean, math.exp(log_scale)), 1 / 255
    inside = (gaussian.cdf(bins + half) - gaussian.cdf(bins - half))[1:-1]
    # the published tanh approximates each distribution function to 3e-4 (Page 1977)
    torch.testing.assert_close(log_mass.exp()[1:-1], inside, rtol=0, atol=6e-4)
    assert float(log_mass.exp()[0]) == pytest.approx(float(gaussian.cdf(bins[0] + half)), abs=3e-4)
    assert float(log_mass.exp()[-1]) == pytest.approx(1 - float(gaussian.cdf(bins[-1] - half)), abs=3e-4)


def test_a_bin_without_mass_has_a_finite_loss() -> None:
    far = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    log_mass = discretised_log_likelihood(far, -far + torch.tensor([0.0, 0.9, 0.0]), torch.full_like(far, -8.0))
    torch.testing.assert_close(log_mass, torch.full_like(far, math.log(1e-12)))


# ------------------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("target", ["epsilon", "x0", "v"])
def test_the_variational_bound_is_that_of_the_chain(target: Any) -> None:
    """Nichol and Dhariwal 2021, equations 4 to 6: divergences of posteriors, and the first step's likelihood."""
    config = DiffusionConfig(timesteps=20, steps=20, variance="learned", prediction_type=target)
    model, levels = Diffusion(config), config.training_levels()
    index = torch.tensor([0, 1, 7, 19])
    clean, noise = normal(4, 3, 2, seed=1).tanh(), normal(4, 3, 2, seed=2)
    clean[0, 0] = torch.tensor([-1.0, 1.0])  # the open bins
    output = (0.3 * normal(4, 3, 4, seed=3)).requires_grad_()
    seen: list[Tensor] = []

    def network(x: Tensor, time: Tensor) -> Tensor:
        seen.extend((x, time))
        return output

    losses = model.losses(network, clean, noise, model.at(index))
    values = {name: loss.detach() for name, loss in losses.items()}
    assert set(losses) == {"mse", "vb"}
    assert losses["mse"].shape == losses["vb"].shape == (4,)
    x, times = seen
    assert times.tolist() == [0, 1, 7, 19]
    for row, at in enumerate(index.tolist()):
        t, s = levels[at], levels[at - 1]
        torch.testing.assert_close(x[row], t.signal * clean[row] + t.sigma * noise[row], rtol=1e-6, atol=1e-6)
        predicted, share = output[row].detach().double().chunk(2, dim=-1)
        wanted = regression_target(target, clean[row], noise[row], t.signal, t.sigma)
        assert float(values["mse"][row]) == pytest.approx(float((predicted - wanted).square().mean()), rel=1e-5)
        denoised = {
            "epsilon": (x[row] - t.sigma * predicted) / t.signal,
            "x0": predicted,
            "v": t.signal * x[row] - t.sigma * predicted,
        }[target]
        beta = 1 - t.signal_squared / s.signal_squared
        scale = s.signal * beta / t.sigma_squared, math.sqrt(1 - beta) * s.sigma_squared / t.sigma_squared
        second = (
            (1 - levels[0].signal_squared)
            / (1 - levels[1].signal_squared)
            * (1 - levels[1].signal_squared / levels[0].signal_squared)
        )
        low = math.log(s.sigma_squared / t.sigma_squared * beta) if at else math.log(second)
        deviation = ((share + 1) / 2 * math.log(beta) + (1 - share) / 2 * low).exp().sqrt()
        mean = scale[0] * denoised + scale[1] * x[row]
        if at:
            true = Normal(scale[0] * clean[row] + scale[1] * x[row], math.exp(low / 2))
            nats = kl_divergence(true, Normal(mean, deviation))
        else:
            nats = -discretised_log_likelihood(clean[row], mean, deviation.log())
        assert float(values["vb"][row]) == pytest.approx(float(nats.mean()) / math.log(2), rel=1e-3)
    (gradient,) = torch.autograd.grad(losses["vb"].sum(), output, retain_graph=True)
    assert not gradient[..., :2].any()  # the bound teaches the variance alone
    assert gradient[..., 2:].any()
    (gradient,) = torch.autograd.grad(losses["mse"].sum(), output)
    assert gradient[..., :2].any() and not gradient[..., 2:].any()


def test_without_a_learned_variance_there_is_no_bound() -> None:
    model = Diffusion(DiffusionConfig())
    times = model.at(torch.tensor([3, 500]))
    assert set(model.losses(lambda x, time: x, normal(2, 3, 2), normal(2, 3, 2, seed=1), times)) == {"mse"}
    assert DiffusionConfig().channels(5) == 5
    assert DiffusionConfig(variance="learned").channels(5) == 10


def test_the_gamma_of_min_snr_reaches_the_loss() -> None:
    clean, noise = normal(3, 4, 2, seed=1), normal(3, 4, 2, seed=2)
    plain, weighted = (
        Diffusion(DiffusionConfig(min_snr_gamma=gamma, prediction_type="x0")).losses(
            lambda x, time: 0 * x, clean, noise, Diffusion(DiffusionConfig()).at(torch.tensor([3, 300, 900]))
        )["mse"]
        for gamma in (None, 2.0)
    )
    squares = torch.tensor([DiffusionConfig().training_levels()[index].signal_squared for index in (3, 300, 900)])
    torch.testing.assert_close(weighted / plain, (squares / (1 - squares)).clamp(max=2.0).double(), rtol=1e-4, atol=0)


# ------------------------------------------------------------------------------------------------- sampling


def test_a_network_is_called_with_one_time_and_its_prediction_is_clipped() -> None:
    model = Diffusion(DiffusionConfig(timesteps=10, steps=5, prediction_type="x0", clip_sample=0.5, solver="ddim"))
    times: list[Tensor] = []

    def network(x: Tensor, time: Tensor) -> Tensor:
        times.append(time)
        return 3 * torch.ones_like(x)

    start = torch.randn(2, 3, 4)
    states = list(model.sample(network, start, lambda: torch.zeros_like(start), "ddim", 5, Options()))
    assert [time.tolist() for time in times] == [[9.0], [7.0], [4.0], [2.0], [0.0]]  # 2.25 apart, rounded
    assert all(torch.equal(clean, torch.full_like(start, 0.5)) for _, clean in states)
    open_ended = Diffusion(DiffusionConfig(timesteps=10, steps=5, prediction_type="x0"))
    *_, (state, _) = open_ended.sample(network, start, lambda: start, "ddim", 5, Options())
    torch.testing.assert_close(state, torch.full_like(start, 3.0))


def test_a_learned_variance_reaches_the_sample() -> None:
    model = Diffusion(DiffusionConfig(timesteps=4, steps=4, prediction_type="x0", variance="learned"))
    start, drawn = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)

    def sampled(share: float) -> Tensor:
        def network(x: Tensor, time: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(x), torch.full_like(x, share)], dim=-1)

        return next(model.sample(network, start, lambda: drawn, "ddpm", 4, Options()))[0]

    levels = model.config.sampling_levels(4)
    step = transition(levels[3], levels[2])
    for share, variance in ((-1.0, step.variance), (1.0, step.added), (0.0, math.sqrt(step.variance * step.added))):
        torch.testing.assert_close(sampled(share), torch.full_like(start, math.sqrt(variance)))


def test_its_tables_are_not_saved() -> None:
    """A checkpoint of one schedule can be sampled under another."""
    model = Diffusion(DiffusionConfig())
    assert len(list(model.buffers())) == 7 and not model.state_dict()


def test_the_settings_of_sampling_reach_the_solver() -> None:
    sampling = Sampling(eta=0.3, temperature=0.7)
    assert Diffusion(DiffusionConfig(variance="beta")).options(sampling) == Options(0.3, 0.7, "beta")
    assert Diffusion(DiffusionConfig(variance="learned")).options(sampling) == Options(0.3, 0.7, "posterior")
    assert DiffusionConfig(solver="heun", steps=7).plan(Sampling(), None) == ("heun", 7)
    assert DiffusionConfig(solver="heun", steps=7).plan(Sampling(solver="euler"), 9) == ("euler", 9)


def test_a_chain_of_one_step_has_the_variance_that_it_adds() -> None:
    levels = DiffusionConfig().sampling_levels(1)
    assert posterior_log_variance(levels, 0) == pytest.approx(math.log(1 - levels[0].signal_squared))


def test_levels_of_sampling_and_training() -> None:
    path = DiffusionConfig(schedule="straight", prediction_type="v", timesteps=4)
    assert path.sampling_levels(5).times.tolist() == [200.0, 400.0, 600.0, 800.0, 1000.0]
    assert path.training_levels().times.tolist() == straight(torch.tensor([0.25, 0.5, 0.75, 1.0])).times.tolist()
    assert path.sampling_levels(5).straight and not DiffusionConfig().training_levels().straight
    short = DiffusionConfig(timestep_spacing="leading").sampling_levels(10)
    assert short.times.tolist() == [100.0 * index for index in range(10)]
    ends = DiffusionConfig(zero_terminal_snr=True, prediction_type="v").sampling_levels(3)
    assert float(ends.signal_squared[-1]) == 0


def test_training_times_of_the_straight_path_are_uniform_and_logit_normal_is_clamped() -> None:
    uniform = torch.tensor([0.0, 0.25, 1 - 2**-24])
    path = Diffusion(DiffusionConfig(schedule="straight", prediction_type="velocity")).times(uniform)
    assert path.index is None
    torch.testing.assert_close(path.sigma, uniform)
    torch.testing.assert_close(path.signal, 1 - uniform)
    wide = DiffusionConfig(schedule="straight", prediction_type="v", times="logit_normal", logit_std=2.0)
    spread = torch.logit(Diffusion(wide).times((torch.arange(1000) + 0.5) / 1000).sigma.double())
    assert float(spread.std()) == pytest.approx(2.0, rel=0.01)
    ends = torch.logit(Diffusion(wide).times(torch.tensor([0.0, 1.0])).sigma.double())
    most = 2 * float(torch.special.ndtri(torch.tensor(1 - 1e-7, dtype=torch.float64)))  # finite at both ends
    assert ends.tolist() == pytest.approx([-most, most], rel=1e-3)
    chain = Diffusion(DiffusionConfig(times="logit_normal", timesteps=100)).times(torch.tensor([0.0, 0.5, 1.0]))
    assert chain.index is not None
    assert chain.index.tolist() == [0, 50, 99]
    last = Diffusion(DiffusionConfig()).times(torch.tensor([1.0])).index
    assert last is not None
    assert last.tolist() == [999]


# ------------------------------------------------------------------------------------------------- defaults


def test_the_defaults_of_a_chain_are_the_published_ones() -> None:
    """Ho et al. 2020, as in diffusers."""
    theirs = DDPMScheduler().alphas_cumprod.double()
    torch.testing.assert_close(DiffusionConfig().training_levels().signal_squared, theirs, rtol=1e-4, atol=0)
    config = DiffusionConfig()
    assert (config.times, config.logit_mean, config.logit_std) == ("uniform", 0.0, 1.0)
    assert (config.solver, config.steps, config.variance) == ("ddpm", 100, "posterior")
    assert not (config.zero_terminal_snr or config.min_snr_gamma or config.clip_sample)


def test_by_default_nothing_is_guided_truncated_or_tempered() -> None:
    sampling = Sampling()
    assert not sampling.guides
    assert (sampling.cfg_scale, sampling.cfg_power, sampling.cfg_interval) == (1.0, 1.0, (0.0, 1.0))
    assert (sampling.temperature, sampling.eta, sampling.seed) == (1.0, 0.0, 0)
    assert sampling.choice_temperature == 4.5  # of MaskGIT's code
    assert Options() == Options(0.0, 1.0, "posterior")
