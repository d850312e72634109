"""StyleGAN2's residual discriminator (Karras et al. 2020, figure 7c).

Without the batch's standard deviation as a feature: with it the scores would depend on how a batch is split over
processes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from artok.adversarial.discriminators.base import Discriminator, DiscriminatorConfig, Projection
from artok.errors import ConfigError
from artok.nn.blur2d import halve
from artok.nn.r3 import SLOPE


class Config(DiscriminatorConfig):
    """kind: stylegan. base_channels: channels at the full resolution, doubled at every halving up to `largest`."""

    kind: Literal["stylegan"] = "stylegan"
    base_channels: int = Field(64, ge=1)
    largest: int = Field(512, ge=1)

    def build(self, image: tuple[int, ...], classes: int, text: int = 0) -> StyleGanDiscriminator:
        return StyleGanDiscriminator(self, image, classes, text)

    @classmethod
    def tiny(cls) -> Config:
        return cls(base_channels=8, largest=16)


class DownBlock(nn.Module):
    """(3x3, 3x3 at half the size + 1x1 shortcut) / sqrt 2."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, out_width, 3, padding=1)
        self.skip = nn.Conv2d(width, out_width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv1(x), SLOPE)
        y = F.leaky_relu(self.conv2(halve(y)), SLOPE)
        return (y + self.skip(halve(x))) / math.sqrt(2)


class StyleGanDiscriminator(Discriminator):
    """Scores (B,). Halves down to 4 pixels on the shorter side."""

    def __init__(self, config: Config, image: tuple[int, ...], classes: int, text: int) -> None:
        super().__init__()
        channels, height, width = image
        halvings = max(0, int(math.log2(min(height, width) / 4)))
        if any(side % 2**halvings for side in (height, width)):
            raise ConfigError(f"discriminator kind stylegan cannot halve images of {height}x{width} {halvings} times")
        widths = [min(config.base_channels << level, config.largest) for level in range(halvings + 1)]
        self.start = nn.Conv2d(channels, widths[0], 1)
        self.blocks = nn.Sequential(*(DownBlock(a, b) for a, b in pairwise(widths)))
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        area = (height >> halvings) * (width >> halvings)
        self.features = nn.Linear(widths[-1] * area, widths[-1])
        self.score = Projection(widths[-1], classes, text)

    def forward(self, images: Tensor, labels: Tensor | None, text: Tensor | None = None) -> Tensor:
        x = self.blocks(F.leaky_relu(self.start(images), SLOPE))
        x = F.leaky_relu(self.last(x), SLOPE)
        return self.score(F.leaky_relu(self.features(x.flatten(1)), SLOPE), labels, text)
