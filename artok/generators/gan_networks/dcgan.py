"""DCGAN's generator (Radford et al. 2016): transposed convolutions, batch normalisation, ReLU, tanh."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context
from artok.generators.gan_networks.base import GanNetwork, GanNetworkConfig, refuse_halving
from artok.nn.batch_norm import BatchNorm2d
from artok.nn.r3 import base_grid


class Config(GanNetworkConfig):
    """kind: dcgan. channels: channels of each resolution but the last, coarsest first.

    Published for 64x64, without labels: 1024, 512, 256, 128 from 4x4 on.
    """

    kind: Literal["dcgan"] = "dcgan"
    channels: tuple[int, ...] = Field(min_length=1)
    embedding_dim: int = Field(32, ge=1)

    def refuse(self, grid: tuple[int, ...]) -> str | None:
        return refuse_halving(grid, len(self.channels))

    def build(
        self,
        latent: int,
        grid: tuple[int, ...],
        width: int,
        conditioners: Callable[[int, tuple[int, ...]], Conditioners],
    ) -> DcganNetwork:
        return DcganNetwork(self, latent, grid, width, conditioners)

    @classmethod
    def tiny(cls) -> Config:
        return cls(channels=(16, 16), embedding_dim=8)


class DcganNetwork(GanNetwork):
    """DCGAN's generator. It ends in tanh, so its tokens must be in [-1, 1], such as pixels."""

    def __init__(
        self,
        config: Config,
        latent: int,
        grid: tuple[int, ...],
        width: int,
        conditioners: Callable[[int, tuple[int, ...]], Conditioners],
    ) -> None:
        super().__init__()
        widths = [*config.channels, width]
        self.base = base_grid(grid, len(widths))
        self.conditioner = conditioners(config.embedding_dim, grid)
        self.start = nn.Linear(latent + config.embedding_dim, widths[0] * self.base[0] * self.base[1], bias=False)
        self.norms = nn.ModuleList(BatchNorm2d(channels) for channels in widths[:-1])
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1, bias=index == len(widths) - 2)  # no bias before a norm
            for index, (a, b) in enumerate(pairwise(widths))
        )
        for module in (self.start, *self.convolutions):
            nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, latents_BZ: Tensor, context: Context) -> Tensor:
        latents_BZ = torch.cat([latents_BZ, context.pooled], dim=1)
        x = self.start(latents_BZ).unflatten(1, (-1, *self.base))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = convolution(F.relu(norm(x)))
        return torch.tanh(x)
