"""Noise levels of a diffusion: x = signal x_0 + sigma noise, as float64 tables from the cleanest level to the noisiest.

Diffusion chains keep signal^2 + sigma^2 = 1 (Ho et al. 2020, arXiv 2006.11239); the straight path of flow matching has
signal + sigma = 1 (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from artok.errors import ConfigError

Schedule = Literal["linear", "scaled_linear", "cosine", "straight"]
Spacing = Literal["linspace", "leading"]

TIME_SCALE = 1000.0  # the time at the noisiest end of the straight path, near the chains' last step


@dataclass(frozen=True)
class Level:
    """One noise level. power: signal^2 + sigma^2. time: the input of the network."""

    signal_squared: float
    sigma_squared: float
    power: float
    time: float

    @property
    def signal(self) -> float:
        return math.sqrt(self.signal_squared)

    @property
    def sigma(self) -> float:
        return math.sqrt(self.sigma_squared)


CLEAN = Level(1.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Levels:
    """A sequence of levels, the cleanest first, without x_0 itself. All tensors are (T,) float64.

    straight: whether they lie on the straight path, signal + sigma = 1, instead of a chain. end: what they lead to,
    x_0 or, of a part, the next level.
    """

    signal_squared: Tensor
    sigma_squared: Tensor
    power: Tensor
    times: Tensor
    straight: bool = False
    end: Level = CLEAN

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int) -> Level:
        """The level of an index from 0; -1 is the end."""
        return self.end if index == -1 else self._levels[index]

    @cached_property
    def _levels(self) -> list[Level]:  # a solver reads a few at each step, and reading from a tensor is slow
        columns = (self.signal_squared, self.sigma_squared, self.power, self.times)
        return [Level(*numbers) for numbers in zip(*(column.tolist() for column in columns), strict=True)]

    def part(self, low: int, high: int) -> Levels:
        """The levels low, low + 1, ... high, which lead to the level before them."""
        rows = slice(low, high + 1)
        columns = (self.signal_squared[rows], self.sigma_squared[rows], self.power[rows], self.times[rows])
        return Levels(*columns, straight=self.straight, end=self[low - 1])

    def select(self, indices: Sequence[int]) -> Levels:
        """A chain shortened to these steps, in ascending order (Nichol and Dhariwal 2021, section 4).

        The signal is computed from the new betas, as in the published code, to equal its rounding.
        """
        rows = torch.tensor(indices, dtype=torch.int64, device="cpu")
        before = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), self.signal_squared[rows[:-1]]])
        return replace(chain(1 - self.signal_squared[rows] / before), times=self.times[rows])


def betas(schedule: Schedule, steps: int, first: float, last: float) -> Tensor:
    """The variance added in each step of a chain, (T,) float64.

    linear: from first to last (Ho et al. 2020, section 4). scaled_linear: its root is linear (Rombach et al. 2022's
    code). cosine: alpha_bar(t) = cos^2((t + .008) / 1.008 * pi / 2) with betas of at most .999, and neither first nor
    last (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17).
    """
    if schedule == "linear":
        return _even(first, last, steps)
    if schedule == "scaled_linear":
        return _even(math.sqrt(first), math.sqrt(last), steps).square()
    if schedule == "cosine":
        remaining = [math.cos((index / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for index in range(steps + 1)]
        ratios = [min(1 - after / before, 0.999) for before, after in pairwise(remaining)]
        return torch.tensor(ratios, dtype=torch.float64, device="cpu")
    raise ValueError(f"the schedule {schedule} is no chain and has no betas")


def _even(first: float, last: float, steps: int) -> Tensor:
    # on the CPU even inside another default device, since the values are read here
    return torch.linspace(first, last, steps, dtype=torch.float64, device="cpu")


def chain(betas_T: Tensor) -> Levels:
    """The levels alpha_bar = prod(1 - beta) of a chain. The time of a level is its step, from 0."""
    alpha_bar = (1 - betas_T.double()).cumprod(0)
    times = torch.arange(len(alpha_bar), dtype=torch.float64, device="cpu")
    return Levels(alpha_bar, 1 - alpha_bar, torch.ones_like(alpha_bar), times)


def to_zero_terminal(levels: Levels) -> Levels:
    """The chain with its signal shifted and scaled to end at 0; the first level is kept (Lin et al. 2023, arXiv
    2305.08891, algorithm 1). Without it, training never shows the pure noise that sampling starts from."""
    signal = levels.signal_squared.sqrt()
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    squared = signal.square()
    return Levels(squared, 1 - squared, torch.ones_like(squared), levels.times)


def straight(times: Tensor) -> Levels:
    """Levels of the straight path x = (1 - t) x_0 + t noise at ascending times t in (0, 1]."""
    t = times.double()
    signal, sigma = (1 - t).square(), t.square()
    return Levels(signal, sigma, signal + sigma, t * TIME_SCALE, straight=True)


def even_times(steps: int) -> Tensor:
    """Times 1/n, 2/n, ... 1 of the straight path, (n,) float64."""
    return torch.arange(1, steps + 1, dtype=torch.float64, device="cpu") / steps


def choose_steps(length: int, count: int, spacing: Spacing) -> list[int]:
    """The `count` steps of a chain of `length` that a shortened chain keeps, ascending.

    linspace: evenly from the first to the last, rounded. leading: every k-th from 0, for the smallest integer k that
    gives `count`. ConfigError: `count` is above `length`, or no stride gives it.
    """
    if count > length:
        raise ConfigError(f"{count} sampling steps are more than the {length} of the noise schedule; ask for fewer")
    if spacing == "linspace":
        if count == 1:
            return [length - 1]
        stride = (length - 1) / (count - 1)
        # summed up as in the published code, whose rounding decides at ties (such as 21 of 1000)
        return [round(place) for place in accumulate([stride] * (count - 1), initial=0.0)]
    for stride_ in range(1, length + 1):
        if len(range(0, length, stride_)) == count:
            return list(range(0, length, stride_))
    raise ConfigError(f"no whole stride takes {count} of the {length} steps; use timestep_spacing linspace")
