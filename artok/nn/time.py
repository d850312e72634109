"""Diffusion times as vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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


class IntervalEmbedding(nn.Module):
    """Two times t and s as a vector, through two linear layers: (M, 2) float to (M, width).

    It reads cosines and sines of t and of t - s at `FREQUENCIES` frequencies, from LOWEST to HIGHEST radians over the
    whole of time. They are low, since its derivative by t is part of what a network of average velocities learns (Geng
    et al. 2025, arXiv 2505.13447, section 4.3): with those of `TimeEmbedding` it does not learn.
    """

    FREQUENCIES, LOWEST, HIGHEST = 32, 0.25, 10.0
    WHOLE = 1000.0  # the largest time

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        steps = torch.linspace(0, 1, self.FREQUENCIES, dtype=times.dtype, device=times.device)
        frequencies = self.LOWEST * (self.HIGHEST / self.LOWEST) ** steps
        t, s = (times / self.WHOLE).unbind(1)
        angles = torch.stack([t, t - s], dim=1)[..., None] * frequencies
        return self.layers(torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1))
