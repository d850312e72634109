"""Prediction targets of diffusion networks, their conversion to x_0, and their weights in training.

All formulas hold for x = signal x_0 + sigma noise, so for chains and the straight path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from artok.sampling.schedules import Level

Target = Literal["epsilon", "x0", "v", "velocity", "average_velocity"]
Number = float | Tensor


@dataclass(frozen=True)
class Transition:
    """The Gaussian step from a level t to a cleaner one s, all float64 (Kingma et al. 2021, arXiv 2107.00630, section
    3.1 and appendix A; on a chain Ho et al. 2020, eq. 6 and 7).

    added: variance that the forward step from s to t adds, beta on a chain. from_clean, from_noisy: the posterior mean
    is from_clean x_0 + from_noisy x_t. variance: of the posterior.
    """

    added: float
    from_clean: float
    from_noisy: float
    variance: float


def transition(t: Level, s: Level) -> Transition:
    share = t.signal_squared / s.signal_squared
    added = t.power - share * s.power  # sigma_t^2 - share sigma_s^2, without its cancellation where the power is 1
    return Transition(
        added=added,
        from_clean=added * s.signal / t.sigma_squared,
        from_noisy=s.sigma_squared * math.sqrt(share) / t.sigma_squared,
        variance=s.sigma_squared * added / t.sigma_squared,
    )


def regression_target(target: Target, clean: Tensor, noise: Tensor, signal: Number, sigma: Number) -> Tensor:
    """The regression target at x = signal clean + sigma noise.

    epsilon: the noise (Ho et al. 2020). x0: the clean tokens. v: signal noise - sigma clean (Salimans and Ho 2022,
    arXiv 2202.00512, appendix D). velocity: noise - clean, dx/dt of the straight path (Liu et al. 2022), and the limit
    of its average over a short way, average_velocity (Geng et al. 2025, arXiv 2505.13447).
    """
    if target == "epsilon":
        return noise
    if target == "x0":
        return clean
    return signal * noise - sigma * clean if target == "v" else noise - clean


def to_clean(target: Target, output: Tensor, x: Tensor, signal: Number, sigma: Number) -> Tensor:
    """x_0 from a prediction of `target` at x. For epsilon, signal must not be 0."""
    if target == "x0":
        return output
    if target == "epsilon":
        return (x - sigma * output) / signal
    if target == "v":
        return (signal * x - sigma * output) / (signal * signal + sigma * sigma)
    return (x - sigma * output) / (signal + sigma)


def to_noise(clean: Tensor, x: Tensor, signal: Number, sigma: Number) -> Tensor:
    """The noise from x and x_0."""
    return (x - signal * clean) / sigma


def min_snr_weights(target: Target, signal: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """Weights of the squared error of `target`, so that the error of x_0 gets min(SNR, gamma) (Hang et al. 2023, arXiv
    2303.09556, eq. 8); SNR = signal^2 / sigma^2.

    The weight is min(SNR, gamma) over the squared factor between errors of target and x_0: SNR for epsilon, 1 for
    x0, power^2 / sigma^2 for v (SNR + 1 on a chain), (signal + sigma)^2 / sigma^2 for velocity.
    """
    snr = signal.square() / sigma.square()
    squares = {
        "epsilon": snr,
        "x0": torch.ones_like(snr),
        "v": (signal.square() + sigma.square()).square() / sigma.square(),
        "velocity": (signal + sigma).square() / sigma.square(),
    }
    return snr.clamp(max=gamma) / squares[target]


# ---------------------------------------------------------------------------------------------- learned variance


def interpolated_log_variance(interpolation: Tensor, low: Number, high: Number) -> Tensor:
    """A log variance between the posterior's `low` and beta's `high`; interpolation -1 is low and 1 high (Nichol and
    Dhariwal 2021, eq. 15, with their code's range)."""
    share = (interpolation + 1) / 2
    return share * high + (1 - share) * low


def gaussian_divergence(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N_1 || N_2) in nats, elementwise."""
    gap = (mean_1 - mean_2).square() * (-log_variance_2).exp()
    return 0.5 * (log_variance_2 - log_variance_1 - 1 + (log_variance_1 - log_variance_2).exp() + gap)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log mass in nats of the bin of width 2/255 around x under N(mean, exp(log_scale)^2), the tails open at -1 and 1
    (Ho et al. 2020, eq. 13).

    The normal distribution function is the tanh approximation of the published training code.
    """
    inverse = (-log_scale).exp()
    upper = _normal_cdf((x - mean + 1 / 255) * inverse)
    lower = _normal_cdf((x - mean - 1 / 255) * inverse)
    inside = (upper - lower).clamp(min=1e-12).log()
    below, above = upper.clamp(min=1e-12).log(), (1 - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
