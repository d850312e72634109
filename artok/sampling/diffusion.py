"""The `diffusion:` section of MAR's head and latent diffusion, with its loss and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from artok.config import Config
from artok.sampling.schedules import (
    CLEAN,
    TIME_SCALE,
    Level,
    Levels,
    Schedule,
    Spacing,
    betas,
    chain,
    choose_steps,
    even_times,
    straight,
    to_zero_terminal,
)
from artok.sampling.settings import Sampling
from artok.sampling.solvers import (
    SOLVERS,
    Denoised,
    Draw,
    Options,
    SolverName,
    States,
    evaluations,
    posterior_log_variance,
)
from artok.sampling.targets import (
    Number,
    Target,
    discretised_log_likelihood,
    gaussian_divergence,
    interpolated_log_variance,
    min_snr_weights,
    regression_target,
    to_clean,
    transition,
)

Network = Callable[[Tensor, Tensor], Tensor]


class DiffusionConfig(Config):
    """schedule: "straight" is flow matching; the others are chains of `timesteps` steps.

    beta_start, beta_end: of the linear schedules. zero_terminal_snr: rescale a chain to end without signal.
    variance: of DDPM's steps; "learned" doubles the network's output and adds a variational bound term to the loss.
    min_snr_gamma: the gamma of min-SNR weighting (5 in Hang et al. 2023), or none.
    times: uniform, or logit-normal (Esser et al. 2024, arXiv 2403.03206, eq. 19) with its mean and deviation.
    timestep_spacing: the steps that a shortened chain keeps. clip_sample: largest magnitude of a predicted x_0 in
    sampling, for pixels.
    reads_scale: the network reads the guidance scale, so that guidance takes no second pass; a method of distillation
    teaches it. solver, steps: defaults of sampling.
    """

    schedule: Schedule = "linear"
    timesteps: int = Field(1000, ge=2)
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    zero_terminal_snr: bool = False
    prediction_type: Target = "epsilon"
    variance: Literal["posterior", "beta", "learned"] = "posterior"
    min_snr_gamma: float | None = Field(None, gt=0)
    times: Literal["uniform", "logit_normal"] = "uniform"
    logit_mean: float = 0.0
    logit_std: float = Field(1.0, gt=0)
    timestep_spacing: Spacing = "linspace"
    clip_sample: float | None = Field(None, gt=0)
    reads_scale: bool = False
    solver: SolverName = "ddpm"
    steps: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _check_consistency(self) -> DiffusionConfig:
        is_straight = self.schedule == "straight"
        if self.prediction_type == "epsilon" and (is_straight or self.zero_terminal_snr):
            raise ValueError(
                "prediction_type epsilon does not determine the tokens where there is no signal, as at the start of "
                "the straight path and of zero_terminal_snr chains; use x0, v or velocity"
            )
        if self.averages and not is_straight:
            raise ValueError("prediction_type average_velocity belongs to schedule straight")
        if self.averages and self.reads_scale:
            raise ValueError("a network of prediction_type average_velocity reads two times and no guidance scale")
        if is_straight and (self.variance == "learned" or self.zero_terminal_snr):
            raise ValueError("a learned variance and zero_terminal_snr belong to chains, not to schedule straight")
        if not is_straight and self.steps > self.timesteps:
            raise ValueError(f"steps {self.steps} are more than the {self.timesteps} timesteps of the schedule")
        return self

    @property
    def averages(self) -> bool:
        """Whether the network reads two times, of x and of where it goes, and predicts the average velocity between."""
        return self.prediction_type == "average_velocity"

    def channels(self, width: int) -> int:
        """Outputs of the network for a vector of `width` numbers."""
        return 2 * width if self.variance == "learned" else width

    def training_levels(self) -> Levels:
        """The levels of the whole chain, or of the straight path for the tables only."""
        if self.schedule == "straight":
            return straight(even_times(self.timesteps))
        levels = chain(betas(self.schedule, self.timesteps, self.beta_start, self.beta_end))
        return to_zero_terminal(levels) if self.zero_terminal_snr else levels

    def sampling_levels(self, steps: int) -> Levels:
        """The levels of sampling in `steps` steps. ConfigError: the chain is shorter, or no spacing fits."""
        return sampling_levels(self, steps)

    def plan(self, sampling: Sampling, steps: int | None) -> tuple[SolverName, int]:
        """The solver and its number of steps. ConfigError: as in `sampling_levels`."""
        count = steps or self.steps
        self.sampling_levels(count)
        return sampling.solver or self.solver, count

    def evaluations(self, sampling: Sampling, steps: int | None) -> int:
        return evaluations(*self.plan(sampling, steps))


@dataclass(frozen=True)
class Times:
    """The noise level of each row of a batch, float32 (M,), or of each of its F frames, (M, F). index: the step on the
    chain, int64."""

    signal: Tensor
    sigma: Tensor
    time: Tensor
    index: Tensor | None


@lru_cache(maxsize=32)
def sampling_levels(config: DiffusionConfig, steps: int) -> Levels:
    """As `DiffusionConfig.sampling_levels`; a diffusion head asks for the same ones at each of its steps."""
    if config.schedule == "straight":
        return straight(even_times(steps))
    return config.training_levels().select(choose_steps(config.timesteps, steps, config.timestep_spacing))


@lru_cache(maxsize=8)
def tables_of(config: DiffusionConfig) -> dict[str, Tensor]:
    """Tables by the step of the chain for training and sampling, each (T,) float64."""
    levels = config.training_levels()
    steps = [transition(levels[index], levels[index - 1]) for index in range(len(levels))]
    tables: dict[str, Tensor | list[float]] = {
        "signal": levels.signal_squared.sqrt(),
        "sigma": levels.sigma_squared.sqrt(),
        "time": levels.times,
        "from_clean": [step.from_clean for step in steps],
        "from_noisy": [step.from_noisy for step in steps],
        "low": [posterior_log_variance(levels, index) for index in range(len(levels))],
        "high": [math.log(step.added) for step in steps],
    }
    return {name: torch.as_tensor(table, dtype=torch.float64, device="cpu") for name, table in tables.items()}


class Diffusion(nn.Module):
    """Computes losses of a network at random noise levels, and samples from it. It has float64 tables, no weights."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        for name, table in tables_of(config).items():
            self.register_buffer(name, table.clone(), persistent=False)

    # ------------------------------------------------------------------------------------------ training

    def times(self, uniform: Tensor) -> Times:
        """Random noise levels from uniform numbers (M,) or (M, F) in [0, 1)."""
        share = uniform.double()
        if self.config.times == "logit_normal":
            normal = torch.special.ndtri(share.clamp(1e-7, 1 - 1e-7))
            share = torch.sigmoid(self.config.logit_mean + self.config.logit_std * normal)
        return self.levels(share)

    def levels(self, share: Tensor) -> Times:
        """The noise levels at shares of all of time, from 0, clean, to 1."""
        if self.config.schedule == "straight":
            t = share.float()
            return Times(1 - t, t, t * TIME_SCALE, None)
        return self.at((share * self.config.timesteps).long().clamp(max=self.config.timesteps - 1))

    def at(self, index: Tensor) -> Times:
        """The noise levels of the steps `index` int64 of the chain."""
        return Times(self._row("signal", index), self._row("sigma", index), self._row("time", index), index)

    def _row(self, table: str, index: Tensor) -> Tensor:
        tensor = getattr(self, table)
        assert isinstance(tensor, Tensor)
        return tensor[index].float()

    def losses(self, network: Network, clean: Tensor, noise: Tensor, times: Times) -> dict[str, Tensor]:
        """The weighted terms of the loss, each (M,): means over all axes but the first. With times (M, F) of frames,
        each (M, F): means over a frame's own of the N tokens of a row (M, N, D).

        network(x, time): x (M, ..., D) and time (M,) to (M, ..., D), or (M, ..., 2D) with a learned variance. One of
        average velocities gets time (M, 2), of x and of where it goes, here the same.
        clean, noise: (M, ..., D). mse: of the target (Ho et al. 2020, eq. 14). vb: with a learned variance, in bits,
        its gradient to the variance only (Nichol and Dhariwal 2021, section 3.1).
        """
        config = self.config
        signal, sigma = (over_tokens(level, clean) for level in (times.signal, times.sigma))
        x = signal * clean + sigma * noise
        time = times.time[:, None].expand(-1, 2) if config.averages else times.time
        output = network(x, time).float()
        interpolation: Tensor | None = None
        if config.variance == "learned":
            output, interpolation = output.chunk(2, dim=-1)
        target = regression_target(config.prediction_type, clean, noise, signal, sigma)
        mse = mean_by_frame((output - target).square(), times.time)
        if config.min_snr_gamma is not None:
            mse = mse * min_snr_weights(config.prediction_type, times.signal, times.sigma, config.min_snr_gamma)
        if interpolation is None:
            return {"mse": mse}
        denoised = to_clean(config.prediction_type, output.detach(), x, signal, sigma)
        assert times.index is not None
        return {"mse": mse, "vb": self._bound(clean, x, denoised, interpolation, times.index)}

    def _bound(self, clean: Tensor, x: Tensor, denoised: Tensor, interpolation: Tensor, index: Tensor) -> Tensor:
        """A term of the variational bound in bits per dimension, one for each index (Nichol and Dhariwal 2021, eq. 4
        to 6)."""
        names = ("from_clean", "from_noisy", "low", "high")
        from_clean, from_noisy, low, high = (over_tokens(self._row(name, index), clean) for name in names)
        mean, log_variance = from_clean * denoised + from_noisy * x, interpolated_log_variance(interpolation, low, high)
        nats = gaussian_divergence(from_clean * clean + from_noisy * x, low, mean, log_variance)
        first = -discretised_log_likelihood(clean, mean, 0.5 * log_variance)
        return mean_by_frame(torch.where(over_tokens(index == 0, clean), first, nats), index) / math.log(2)

    # ------------------------------------------------------------------------------------------ sampling

    def sample(
        self,
        network: Network,
        x: Tensor,
        draw: Draw,
        solver: SolverName,
        steps: int,
        options: Options,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> States:
        """Yield states (x, predicted x_0), from standard noise x (M, ..., D) to the sample.

        network: as in `losses`, but with one time (1,) for all rows, or with a pair of them (1, 2) for averages. embed:
        maps the times (K,) of all steps at once to rows (K, W), of which the network gets one, (1, W), for its time.
        """
        return self.solve(network, x, self.config.sampling_levels(steps), draw, solver, options, embed=embed)

    def solve(
        self,
        network: Network,
        x: Tensor,
        levels: Levels,
        draw: Draw,
        solver: SolverName,
        options: Options,
        known: Callable[[Tensor], Tensor] | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> States:
        """`sample` over some levels. known: puts what is known of x_0 into a prediction of it."""
        every = [CLEAN, *(levels[index] for index in range(-1, len(levels)))]
        times = torch.tensor([level.time for level in every], dtype=torch.float32, device=x.device)
        rows = dict(zip(every, (times if embed is None else embed(times)).split(1), strict=True))

        def denoise(state: Tensor, t: Level, s: Level) -> Denoised:
            output = network(state, torch.stack([rows[t], rows[s]], dim=1) if self.config.averages else rows[t])
            found = self.denoise(output.float(), state, t.signal, t.sigma)
            return found if known is None else replace(found, clean=known(found.clean))

        return SOLVERS[solver](denoise, x, levels, draw, options)

    def options(self, sampling: Sampling) -> Options:
        beta = self.config.variance == "beta"
        return Options(sampling.eta, sampling.temperature, "beta" if beta else "posterior")

    def denoise(self, output: Tensor, x: Tensor, signal: Number, sigma: Number) -> Denoised:
        """Convert a network's output at x = signal x_0 + sigma noise to predicted clean tokens."""
        interpolation: Tensor | None = None
        if self.config.variance == "learned":
            output, interpolation = output.chunk(2, dim=-1)
        clean = to_clean(self.config.prediction_type, output, x, signal, sigma)
        if self.config.clip_sample is not None:
            clean = clean.clamp(-self.config.clip_sample, self.config.clip_sample)
        return Denoised(clean, interpolation)


def over_tokens(level: Tensor, x: Tensor) -> Tensor:
    """Levels (M,) of rows, or (M, F) of frames, as they go with x (M, ..., D) or (M, N, D)."""
    if level.ndim == 1:
        return level.view((-1,) + (1,) * (x.ndim - 1))
    return level.repeat_interleave(x.shape[1] // level.shape[1], dim=1)[..., None]


def mean_by_frame(values: Tensor, level: Tensor) -> Tensor:
    """The means of values (M, ...) that go with each of the levels (M,) or (M, F)."""
    return values.reshape(*level.shape, -1).mean(-1)


def starting_noise(noise: Tensor, solver: SolverName, sampling: Sampling) -> Tensor:
    """The start of sampling. Temperature scales the added noise, or the start for solvers that add none; in consistency
    sampling, whose samples come from a start each, both."""
    added = solver == "ddpm" or (solver == "ddim" and sampling.eta > 0)
    return noise if added else sampling.temperature * noise
