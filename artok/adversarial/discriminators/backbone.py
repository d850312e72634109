"""A discriminator on a frozen backbone's features (Projected GAN, Sauer et al. 2021; StyleGAN-T, Sauer et al. 2023).

VAR's tokenizer was trained against one of this kind on DINO's vision transformer. Only the heads are trained: one for
each of several layers, a score for every place of its map.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from artok.adversarial.discriminators.base import Discriminator, DiscriminatorConfig
from artok.errors import ConfigError
from artok.nn.backbone import open_backbone


class Config(DiscriminatorConfig):
    """kind: backbone. model: a timm name, such as vit_small_patch16_224.dino. weights: a local file of it; timm's own
    are downloaded unless given. layers: as timm numbers them. size: side that images are brought to; that of the
    backbone unless given.
    """

    kind: Literal["backbone"] = "backbone"
    model: str = "vit_small_patch16_224.dino"
    weights: Path | None = None
    layers: tuple[int, ...] = Field((2, 5, 8, 11), min_length=1)
    kernel: int = Field(9, ge=1, description="places that a head's residual convolution spans")
    size: int | None = Field(None, ge=8)
    random: bool = Field(False, description="random weights instead of learned ones, to try the rest out")

    def build(self, image: tuple[int, ...], classes: int, text: int = 0) -> BackboneDiscriminator:
        if classes or text:
            raise ConfigError("discriminator kind backbone hears no labels or texts; use residual, stylegan or dcgan")
        return BackboneDiscriminator(self)

    @classmethod
    def tiny(cls) -> Config:
        return cls(model="resnet10t", layers=(1, 2), kernel=3, size=32, random=True)


class Head(nn.Module):
    """Scores (B, h w) of a map (B, C, h, w), its places in a row: a 1x1 convolution, a residual one, one to a score."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Conv1d(channels, channels, 1))
        self.norm1 = nn.GroupNorm(1, channels)
        self.second = spectral_norm(nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular"))
        self.norm2 = nn.GroupNorm(1, channels)
        self.score = spectral_norm(nn.Conv1d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm1(self.first(features.flatten(2))), 0.2)
        x = (x + F.leaky_relu(self.norm2(self.second(x)), 0.2)) / 2**0.5
        return self.score(x)[:, 0]


class BackboneDiscriminator(Discriminator):
    """Scores (B, places of all layers together)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = None if config.size is None else (config.size, config.size)
        self.backbone = open_backbone(config.model, config.weights, size, config.random)
        self.layers = config.layers
        with_maps = self.backbone.maps(self.backbone.blank(), config.layers)
        self.heads = nn.ModuleList(Head(features.shape[1], config.kernel) for features in with_maps)

    def forward(self, images: Tensor, labels: Tensor | None, text: Tensor | None = None) -> Tensor:
        maps = self.backbone.maps(images, self.layers)
        return torch.cat([head(features) for head, features in zip(self.heads, maps, strict=True)], dim=1)
