"""The interface of discriminators: images and labels in, scores out, high for what looks real."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from artok.config import Part


class Discriminator(nn.Module, ABC):
    """Scores images."""

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Scores (B, ...), one per image or one per patch, for images (B, C, H, W) in about [-1, 1].

        labels: (B,) int64, or None where it was built for no classes.
        """


class DiscriminatorConfig(Part, ABC):
    """The `discriminator:` section of a critic."""

    @abstractmethod
    def build(self, image: tuple[int, ...], classes: int) -> Discriminator:
        """The discriminator of images of (channels, height, width), with fresh weights.

        classes: number of labels, or 0 for none. A ConfigError when the size or the labels do not fit.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> DiscriminatorConfig:
        """The smallest sensible setting, which the contract tests run on images of (3, 16, 16)."""


class Projection(nn.Module):
    """A score of features (B, D) under a label: linear(h) + <embedding(label), h> (Miyato and Koyama 2018, eq. 3)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.embedding = nn.Embedding(classes, width) if classes else None

    def forward(self, features_BD: Tensor, labels_B: Tensor | None) -> Tensor:
        """(B,)."""
        score_B = self.score(features_BD)[:, 0]
        if self.embedding is None or labels_B is None:
            return score_B
        return score_B + (self.embedding(labels_B) * features_BD).sum(1)
