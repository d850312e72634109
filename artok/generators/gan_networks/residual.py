"""R3GAN's generator: a learned 4x4 map scaled by the latent, then grouped residual blocks (Huang et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context
from artok.config import Depth
from artok.generators.gan_networks.base import GanNetwork, GanNetworkConfig, refuse_halving
from artok.nn.blur2d import double
from artok.nn.r3 import GroupedBlock, base_grid, scaled_, widen


class Config(GanNetworkConfig):
    """kind: residual. channels: channels of each resolution, coarsest first; sides double at each.

    Published for CIFAR-10: channels 768 four times, blocks 2, groups 96, embedding_dim 768.
    """

    kind: Literal["residual"] = "residual"
    channels: tuple[int, ...] = Field(min_length=1)
    blocks: Depth = Field(2, description="residual blocks per resolution")
    groups: int = Field(1, ge=1)

    def refuse(self, grid: tuple[int, ...]) -> str | None:
        return refuse_halving(grid, len(self.channels) - 1)

    def build(
        self,
        latent: int,
        grid: tuple[int, ...],
        width: int,
        conditioners: Callable[[int, tuple[int, ...]], Conditioners],
    ) -> ResidualNetwork:
        return ResidualNetwork(self, latent, grid, width, conditioners)

    @classmethod
    def tiny(cls) -> Config:
        return cls(channels=(16, 16, 16), blocks=1, groups=2, embedding_dim=8)


class ResidualNetwork(GanNetwork):
    def __init__(
        self,
        config: Config,
        latent: int,
        grid: tuple[int, ...],
        width: int,
        conditioners: Callable[[int, tuple[int, ...]], Conditioners],
    ) -> None:
        super().__init__()
        widths = config.channels
        in_all = len(widths) * config.blocks
        self.conditioner = conditioners(config.embedding_dim, grid)
        self.basis = nn.Parameter(torch.randn(widths[0], *base_grid(grid, len(widths))))
        self.scale = scaled_(nn.Linear(latent + config.embedding_dim, widths[0], bias=False), 1.0)
        self.transitions = nn.ModuleList(widen(a, b) for a, b in pairwise(widths))
        self.stages = nn.ModuleList(
            nn.Sequential(*(GroupedBlock(width, config.groups, in_all) for _ in range(config.blocks)))
            for width in widths
        )
        self.end = scaled_(nn.Conv2d(widths[-1], width, 1, bias=False), 1.0)

    def forward(self, latents_BZ: Tensor, context: Context) -> Tensor:
        latents_BZ = torch.cat([latents_BZ, context.pooled], dim=1)
        x = self.basis * self.scale(latents_BZ)[:, :, None, None]
        for index, stage in enumerate(self.stages):
            if index:
                x = double(self.transitions[index - 1](x))
            x = stage(x)
        return self.end(x)
