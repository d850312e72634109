"""Diffusion times as vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.nn.vit import ZeroLinear


def sinusoids(times: Tensor, width: int) -> Tensor:
    """(M, width) of times (M,): cosines, then sines, of t * 10000^(-i / (width / 2)), in float32 (Ho et al. 2020)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoids of a time, through two linear layers: (M,) to (M, width)."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.layers = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        return self.layers(sinusoids(times, self.frequencies))


class GuidedTimeEmbedding(TimeEmbedding):
    """`TimeEmbedding` of times and guidance scales, (M, 2) to (M, width). The scale changes nothing at first (Luo et
    al. 2023, arXiv 2310.04378, section 4.2)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.scale = ZeroLinear(self.frequencies, width, bias=False)

    def forward(self, times: Tensor) -> Tensor:
        t, scale = times.unbind(1)
        return super().forward(t) + self.scale(sinusoids(1000 * scale, self.frequencies))


class IntervalEmbedding(nn.Module):
    """Two times t and s as a vector, through two linear layers: (M, 2) float to (M, width).

    It reads cosines and sines of t and of t - s at `FREQUENCIES` frequencies, from LOWEST to HIGHEST radians over the
    whole of time. They are low, since its derivative by t is part of what a network of average velocities learns (Geng
    et al. 2025, arXiv 2505.13447, section 4.3): with those of `TimeEmbedding` it does not learn.
    """

    FREQUENCIES, LOWEST, HIGHEST = 32, 0.25, 10.0
    WHOLE = 1000.0  # the largest time
    RIDGE = 0.1  # of the fit: a closer one is steeper, and its derivative is part of what is learned

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    @torch.no_grad()
    def fit(self, other: TimeEmbedding) -> None:
        """Set the last layer so that the embedding of (t, s) is near another's of t, whatever s, by ridge regression.

        A network whose other weights come from one with that embedding then starts near what it computed.
        """
        t, share = torch.linspace(0, self.WHOLE, 400, dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64)
        times = torch.stack([t.repeat_interleave(5), torch.outer(t, share).flatten()], dim=1)
        first, swish, last = self.layers
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        weight = first.weight
        angles = self.read(times.to(weight.device, weight.dtype))
        hidden = F.pad(swish(first(angles)).double(), (0, 1), value=1)
        penalty = self.RIDGE * len(times) * torch.eye(hidden.shape[1], dtype=torch.float64, device=weight.device)
        wanted = other(times[:, 0].to(weight.device, weight.dtype)).double()
        found = torch.linalg.solve(hidden.T @ hidden + penalty, hidden.T @ wanted)
        last.weight.copy_(found[:-1].T)
        last.bias.copy_(found[-1])

    def forward(self, times: Tensor) -> Tensor:
        embedded: Tensor = self.layers(self.read(times))
        return embedded

    def read(self, times: Tensor) -> Tensor:
        """Cosines, then sines, of the times (M, 2), as (M, 4 FREQUENCIES)."""
        steps = torch.linspace(0, 1, self.FREQUENCIES, dtype=times.dtype, device=times.device)
        frequencies = self.LOWEST * (self.HIGHEST / self.LOWEST) ** steps
        t, s = (times / self.WHOLE).unbind(1)
        angles = torch.stack([t, t - s], dim=1)[..., None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)
