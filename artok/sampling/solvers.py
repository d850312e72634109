"""Diffusion solvers: each is a generator function over a denoiser.

A solver is called as solver(denoise, x, levels, draw, options). denoise(x, t, s) predicts the clean tokens at level t;
a network of average velocities averages over the way to level s. x is the noisiest state, and draw() gives fresh
standard noise of x's shape. It yields (x, clean) after each call of the denoiser, where x is the new state; the last x
is the sample. Coefficients are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from artok.sampling.schedules import CLEAN, Level, Levels
from artok.sampling.targets import Number, interpolated_log_variance, to_noise, transition

SolverName = Literal["ddpm", "ddim", "euler", "heun", "dpm++", "consistency"]

ONLY_NOISE = 1e-5  # signal^2 below which Heun's correction is skipped, since it divides by the signal


@dataclass(frozen=True)
class Denoised:
    """clean: the predicted x_0. interpolation: of a learned log variance, from -1, the posterior's, to 1, beta's."""

    clean: Tensor
    interpolation: Tensor | None = None


@dataclass(frozen=True)
class Options:
    """eta: share of DDIM's noise, 0 for none, 1 for as much as DDPM. temperature: factor on all added noise.
    variance: of DDPM if it is not learned: the posterior's, or beta, the forward step's."""

    eta: float = 0.0
    temperature: float = 1.0
    variance: Literal["posterior", "beta"] = "posterior"


Denoise = Callable[[Tensor, Level, Level], Denoised]
Draw = Callable[[], Tensor]
States = Iterator[tuple[Tensor, Tensor]]


class Solver(Protocol):
    def __call__(self, denoise: Denoise, x: Tensor, levels: Levels, draw: Draw, options: Options) -> States: ...


def ddpm(denoise: Denoise, x: Tensor, levels: Levels, draw: Draw, options: Options) -> States:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), with learned variances as in Nichol and Dhariwal 2021."""
    for index in reversed(range(len(levels))):
        denoised = denoise(x, levels[index], levels[index])
        mean, log_variance = ancestral(denoised, x, levels, index, options)
        x = mean
        if index or levels.end.sigma:
            x = x + options.temperature * (0.5 * log_variance).exp() * draw()
        yield x, denoised.clean


def ancestral(denoised: Denoised, x: Tensor, levels: Levels, index: int, options: Options) -> tuple[Tensor, Tensor]:
    """Mean and log variance, both of x's shape, of the step from level `index` to the next cleaner one."""
    step = transition(levels[index], levels[index - 1])
    mean = step.from_clean * denoised.clean + step.from_noisy * x
    low, high = posterior_log_variance(levels, index), math.log(step.added)
    if denoised.interpolation is not None:
        return mean, interpolated_log_variance(denoised.interpolation, low, high)
    # At the cleanest level the published code always uses the posterior's variance (Nichol and Dhariwal 2021).
    fixed = high if options.variance == "beta" and (index or levels.end.sigma) else low
    return mean, torch.full_like(x, fixed)


def posterior_log_variance(levels: Levels, index: int) -> float:
    """Log variance of the posterior. At the first level, where the variance is 0, that of the second, as published."""
    if index == 0 and levels.end.sigma == 0:
        if len(levels) == 1:
            return math.log(transition(levels[0], levels[-1]).added)
        index = 1
    return math.log(transition(levels[index], levels[index - 1]).variance)


def ddim(denoise: Denoise, x: Tensor, levels: Levels, draw: Draw, options: Options) -> States:
    """Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16)."""
    for index in reversed(range(len(levels))):
        t, s = levels[index], levels[index - 1]
        clean = denoise(x, t, t).clean
        variance = options.eta**2 * transition(t, s).variance
        x = s.signal * clean + math.sqrt(s.sigma_squared - variance) * to_noise(clean, x, t.signal, t.sigma)
        if variance:
            x = x + options.temperature * math.sqrt(variance) * draw()
        yield x, clean


def euler(denoise: Denoise, x: Tensor, levels: Levels, draw: Draw, options: Options) -> States:
    """Euler's method on the probability flow ODE: for x over t on the straight path, for x / signal over sigma / signal
    on a chain (Karras et al. 2022, arXiv 2206.00364, eq. 4). Both are the step of `follow`. With the average velocity
    over the step it is exact (Geng et al. 2025, arXiv 2505.13447, eq. 12)."""
    for index in reversed(range(len(levels))):
        clean = denoise(x, levels[index], levels[index - 1]).clean
        x = follow(x, clean, levels[index], levels[index - 1])
        yield x, clean


class Mixture(Protocol):
    """What x is at a level: signal x_0 + sigma noise, with numbers, or with tensors that go with x."""

    @property
    def signal(self) -> Number: ...

    @property
    def sigma(self) -> Number: ...


def follow(x: Tensor, clean: Tensor, t: Mixture, s: Mixture) -> Tensor:
    """x at level s with the same clean tokens and noise as at level t."""
    return s.signal * clean + s.sigma * to_noise(clean, x, t.signal, t.sigma)


def heun(denoise: Denoise, x: Tensor, levels: Levels, draw: Draw, options: Options) -> States:
    """Heun's second-order method in the variables of `euler` (Karras et al. 2022, algorithm 1). It takes two
    evaluations per step, and one in the last step, which ends at the clean tokens."""
    for index in reversed(range(len(levels))):
        t, s = levels[index], levels[index - 1]
        clean = denoise(x, t, t).clean
        reached = follow(x, clean, t, s)
        yield reached, clean
        if (index or s.sigma) and (levels.straight or t.signal_squared > ONLY_NOISE):
            ahead = denoise(reached, s, s).clean
            reached = corrected(x, clean, reached, ahead, t, s, levels.straight)
            yield reached, ahead
        x = reached


def corrected(
    x: Tensor, clean: Tensor, reached: Tensor, ahead: Tensor, t: Mixture, s: Mixture, straight: bool
) -> Tensor:
    """x_t moved to s along the mean of the slopes at both ends."""
    noise, noise_ahead = to_noise(clean, x, t.signal, t.sigma), to_noise(ahead, reached, s.signal, s.sigma)
    if straight:
        return x + (s.sigma - t.sigma) * 0.5 * (noise - clean + noise_ahead - ahead)
    way = s.sigma / s.signal - t.sigma / t.signal
    return s.signal * (x / t.signal + way * 0.5 * (noise + noise_ahead))


def dpm_solver(denoise: Denoise, x: Tensor, levels: Levels, draw: Draw, options: Options) -> States:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order with one evaluation per step. The
    first step and the step to the clean tokens are of first order."""
    before: Tensor | None = None
    width_before = 0.0
    for index in reversed(range(len(levels))):
        t, s = levels[index], levels[index - 1]
        clean = denoise(x, t, t).clean
        width = log_ratio(s) - log_ratio(t)
        used = clean
        if before is not None and (index or s.sigma):
            used = clean + width / (2 * width_before) * (clean - before)
        ratio = s.sigma / t.sigma
        x = ratio * x + (s.signal - ratio * t.signal) * used
        before, width_before = clean, width
        yield x, clean


def consistency(denoise: Denoise, x: Tensor, levels: Levels, draw: Draw, options: Options) -> States:
    """Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1): each prediction of the clean
    tokens gets fresh noise for the next level."""
    for index in reversed(range(len(levels))):
        s = levels[index - 1]
        clean = denoise(x, levels[index], CLEAN).clean
        x = s.signal * clean + options.temperature * s.sigma * draw() if s.sigma else clean
        yield x, clean


def log_ratio(level: Level) -> float:
    """lambda = log(signal / sigma), infinite at both ends."""
    if level.sigma == 0:
        return math.inf
    return math.log(level.signal / level.sigma) if level.signal else -math.inf


SOLVERS: dict[SolverName, Solver] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm++": dpm_solver,
    "consistency": consistency,
}
assert set(SOLVERS) == set(get_args(SolverName))


def evaluations(solver: SolverName, steps: int) -> int:
    """Calls of the denoiser in `steps` steps. Heun's takes one fewer if the chain starts without signal."""
    return 2 * steps - 1 if solver == "heun" else steps
