"""DCGAN's discriminator (Radford et al. 2016), and without its norms that of Miyato et al. 2018."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from artok.adversarial.discriminators.base import Discriminator, DiscriminatorConfig, Projection
from artok.adversarial.discriminators.patch import make_norm
from artok.errors import ConfigError


class Config(DiscriminatorConfig):
    """kind: dcgan. base_channels: channels at half the image's size, doubled at every halving down to 4 pixels.

    norm: "batch" as in DCGAN; "none" for spectral normalisation (the critic's `spectral_norm`) or a gradient penalty,
    which batch normalisation would undermine.
    """

    kind: Literal["dcgan"] = "dcgan"
    base_channels: int = Field(64, ge=1)
    norm: Literal["batch", "group", "none"] = "batch"

    def build(self, image: tuple[int, ...], classes: int, text: int = 0) -> DcganDiscriminator:
        return DcganDiscriminator(self, image, classes, text)

    @classmethod
    def tiny(cls) -> Config:
        return cls(base_channels=8, norm="none")


class DcganDiscriminator(Discriminator):
    """Scores (B,). Each halving is a 4x4 convolution of stride 2; the first has no normalisation, as published."""

    def __init__(self, config: Config, image: tuple[int, ...], classes: int, text: int) -> None:
        super().__init__()
        channels, height, width = image
        halvings = max(1, int(math.log2(min(height, width) / 4)))
        if any(side % 2**halvings for side in (height, width)):
            raise ConfigError(f"discriminator kind dcgan cannot halve images of {height}x{width} {halvings} times")
        widths = [channels, *(config.base_channels << level for level in range(halvings))]
        layers: list[nn.Module] = []
        for level in range(halvings):
            norm = make_norm(config.norm if level else "none", widths[level + 1])
            layers += [nn.Conv2d(widths[level], widths[level + 1], 4, 2, 1), norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        area = (height >> halvings) * (width >> halvings)
        self.score = Projection(widths[-1] * area, classes, text)

    def forward(self, images: Tensor, labels: Tensor | None, text: Tensor | None = None) -> Tensor:
        return self.score(self.layers(images).flatten(1), labels, text)
