"""R3GAN's discriminator: grouped residual blocks, no normalisation (Huang et al. 2024)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from artok.adversarial.discriminators.base import Discriminator, DiscriminatorConfig
from artok.config import Depth
from artok.nn.blur2d import halve
from artok.nn.r3 import GroupedBlock, base_grid, scaled_, widen


class Config(DiscriminatorConfig):
    """kind: residual. channels: channels of each resolution, coarsest first, so that it mirrors the generator's.

    As published for CIFAR-10: widths 768 four times, blocks 2, groups 96, embedding the latter's 768.
    """

    kind: Literal["residual"] = "residual"
    channels: tuple[int, ...] = Field(min_length=1)
    blocks: Depth = Field(2, description="residual blocks per resolution")
    groups: int = Field(1, ge=1)
    embedding_dim: int = Field(64, ge=1, description="width of the space in which images meet labels and texts")

    def build(self, image: tuple[int, ...], classes: int, text: int = 0) -> ResidualDiscriminator:
        return ResidualDiscriminator(self, image, classes, text)

    @classmethod
    def tiny(cls) -> Config:
        return cls(channels=(8, 8, 8), blocks=1, groups=2, embedding_dim=8)


class ResidualDiscriminator(Discriminator):
    """Scores (B,): <features(image), embedding(label) + map(text)>, or a linear map of the features where there are
    neither labels nor texts."""

    def __init__(self, config: Config, image: tuple[int, ...], classes: int, text: int) -> None:
        super().__init__()
        widths = config.channels[::-1]  # in running order, finest first
        in_all = len(widths) * config.blocks
        self.start = scaled_(nn.Conv2d(image[0], widths[0], 1, bias=False), 1.0)
        self.stages = nn.ModuleList(
            nn.Sequential(*(GroupedBlock(width, config.groups, in_all) for _ in range(config.blocks)))
            for width in widths
        )
        self.transitions = nn.ModuleList(widen(a, b) for a, b in pairwise(widths))
        last, base = widths[-1], base_grid(image[1:], len(widths))
        self.basis = nn.Parameter(torch.randn(last, *base) / math.sqrt(base[0] * base[1]))
        self.features = scaled_(nn.Linear(last, config.embedding_dim if classes or text else 1, bias=False), 1.0)
        self.embedding = nn.Embedding(classes, config.embedding_dim) if classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, 0.0, 1 / math.sqrt(config.embedding_dim))
        self.text = nn.Linear(text, config.embedding_dim, bias=False) if text else None
        if self.text is not None:
            scaled_(self.text, 1 / math.sqrt(config.embedding_dim))

    def forward(self, images: Tensor, labels: Tensor | None, text: Tensor | None = None) -> Tensor:
        x = self.start(images)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index < len(self.transitions):
                x = self.transitions[index](halve(x))
        features_BD = self.features((x * self.basis).sum((2, 3)))
        told = [] if self.embedding is None or labels is None else [self.embedding(labels)]
        if self.text is not None and text is not None:
            told.append(self.text(text))
        return (features_BD * sum(told)).sum(1) if told else features_BD[:, 0]
