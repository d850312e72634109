"""What compares images with their reconstructions while a tokenizer is trained.

A perceptual loss is one more file here. An adversarial one adds a player with an optimizer of its own, through
`critic`: the training loop gives every player its turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from artok.config import Part


class Loss(nn.Module, ABC):
    """A comparison of reconstructions with images, both (B, C, H, W) in [-1, 1]."""

    critic: nn.Module | None = None

    @abstractmethod
    def forward(self, reconstructions: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Weighted scalars by name, whose sum joins the training loss."""


class LossConfig(Part, ABC):
    """One entry of the `losses:` list."""

    @abstractmethod
    def build(self, image: tuple[int, ...]) -> Loss:
        """The loss for images of (channels, *size)."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> LossConfig:
        """The smallest sensible setting, which the contract tests run."""
