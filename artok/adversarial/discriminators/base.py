"""The interface of discriminators: images, labels and texts in, scores out, high for what looks real."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from artok.config import Part


class Discriminator(nn.Module, ABC):
    """Scores images."""

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor | None, text: Tensor | None = None) -> Tensor:
        """Scores (B, ...), one per image or one per patch, for images (B, C, H, W) in about [-1, 1].

        labels: (B,) int64, or None where it was built for no classes. text: (B, W) vectors of texts, or None where it
        was built for none.
        """


class DiscriminatorConfig(Part, ABC):
    """The `discriminator:` section of a critic."""

    @abstractmethod
    def build(self, image: tuple[int, ...], classes: int, text: int = 0) -> Discriminator:
        """The discriminator of images of (channels, height, width), with fresh weights.

        classes: number of labels, or 0 for none. text: width of the vectors of texts, or 0 for none. A ConfigError when
        the size, the labels or the texts do not fit.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> DiscriminatorConfig:
        """The smallest sensible setting, which the contract tests run on images of (3, 16, 16)."""


class Projection(nn.Module):
    """A score of features (B, D) under a label and a text: linear(h) + <embedding(label) + map(text), h> (Miyato and
    Koyama 2018, eq. 3; texts as in GigaGAN, Kang et al. 2023, arXiv 2303.05511, section 3.3)."""

    def __init__(self, width: int, classes: int, text: int = 0) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.embedding = nn.Embedding(classes, width) if classes else None
        self.text = nn.Linear(text, width, bias=False) if text else None

    def forward(self, features_BD: Tensor, labels_B: Tensor | None, text_BW: Tensor | None = None) -> Tensor:
        """(B,)."""
        score_B = self.score(features_BD)[:, 0]
        if self.embedding is not None and labels_B is not None:
            score_B = score_B + (self.embedding(labels_B) * features_BD).sum(1)
        if self.text is not None and text_BW is not None:
            score_B = score_B + (self.text(text_BW) * features_BD).sum(1)
        return score_B
