"""R3GAN's residual block for images: grouped bottlenecks without normalisation (Huang et al. 2024, section 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.errors import ConfigError

SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # keeps the variance through the leaky ReLU (He et al. 2015, eq. 15)
EXPANSION = 2


def scaled_(layer: nn.Conv2d | nn.Linear, gain: float) -> nn.Conv2d | nn.Linear:
    """Weights of deviation gain / sqrt(fan in); the layer."""
    fan = layer.weight[0].numel()
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(fan))
    return layer


class BiasedLeaky(nn.Module):
    """leaky_relu(x + bias), the bias one number a channel: convolutions here have none of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.to(x.dtype)[:, None, None], SLOPE)


class GroupedBlock(nn.Module):
    """x + 1x1(act(3x3 in groups(act(1x1(x))))), the inner width twice the outer.

    The last convolution starts at zero and the others are scaled down by the number of residual blocks of the network,
    as in Fixup (Zhang et al. 2019): depth then needs no normalisation.
    """

    def __init__(self, width: int, groups: int, blocks_in_all: int) -> None:
        super().__init__()
        inner = width * EXPANSION
        if inner % groups:
            raise ConfigError(f"width {width} (twice that inside) must be divisible into {groups} groups")
        gain = GAIN * blocks_in_all ** (-1 / 4)  # -1 / (2 L - 2) for L = 3 layers
        self.expand = scaled_(nn.Conv2d(width, inner, 1, bias=False), gain)
        self.act1 = BiasedLeaky(inner)
        self.mix = scaled_(nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False), gain)
        self.act2 = BiasedLeaky(inner)
        self.reduce = scaled_(nn.Conv2d(inner, width, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(self.act2(self.mix(self.act1(self.expand(x)))))


def widen(width: int, out_width: int) -> nn.Module:
    """A 1x1 convolution where the width changes between two resolutions."""
    return nn.Identity() if width == out_width else scaled_(nn.Conv2d(width, out_width, 1, bias=False), 1.0)


def base_grid(grid: tuple[int, ...], stages: int) -> tuple[int, int]:
    """Sides of the coarsest of `stages` resolutions; a ConfigError unless the grid can be halved so often."""
    factor = 2 ** (stages - 1)
    if len(grid) != 2 or any(side % factor for side in grid):
        raise ConfigError(
            f"{stages} resolutions need two sides that are multiples of {factor}, and the grid is "
            f"{'x'.join(map(str, grid))}; change the number of widths"
        )
    return grid[0] // factor, grid[1] // factor
