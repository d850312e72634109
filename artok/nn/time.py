"""A diffusion time as a vector."""

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
