"""What compares images with their reconstructions while a tokenizer is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from artok.adversarial.critic import Critic
from artok.config import Part
from artok.metrics.features import Extractor, ExtractorConfig
from artok.noise import Noise


@dataclass(frozen=True)
class Setting:
    """What a loss is built for.

    image: (channels, *size). extractor: opens an extractor of features for the data that are trained on; called only by
    a loss that looks through one, since it may read every image. None where only shapes are wanted, on the meta device.
    channels_apart: each channel of the images is an image of its own.
    """

    image: tuple[int, ...]
    device: torch.device
    extractor: Callable[[ExtractorConfig], Extractor] | None
    channels_apart: bool = False


class Loss(nn.Module, ABC):
    """A comparison of reconstructions with images, both (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def forward(self, reconstructions: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Weighted scalars by name, whose sum joins the training loss."""


@dataclass(frozen=True)
class Moment:
    """Where in training a batch stands.

    seen: images before it. noise: its own random numbers. others: what else is minimised of the reconstruction, a
    scalar. last_layer: the weight that makes the reconstruction, to compare gradients at.
    """

    seen: int
    noise: Noise
    others: Tensor
    last_layer: nn.Parameter | None


class AdversarialLoss(nn.Module, ABC):
    """A loss with a critic of its own, which is trained beside the tokenizer."""

    critic: Critic

    @abstractmethod
    def starts(self, batch: int) -> int:
        """The step, of `batch` images each, from which the critic trains."""

    @abstractmethod
    def forward(
        self, reconstructions: Tensor, images: Tensor, moment: Moment
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted scalars that join the training loss, and scalars for the log; none of both before it has a say."""

    @abstractmethod
    def settle(self, mean: Callable[[Tensor], Tensor]) -> None:
        """At the end of a step: what its parts left to be averaged, over the processes by `mean`."""


class LossConfig(Part, ABC):
    """One entry of the `losses:` list."""

    start: int = Field(0, ge=0, description="images of training before it joins; an adversarial loss's critic, too")

    @abstractmethod
    def build(self, setting: Setting) -> Loss | AdversarialLoss:
        """The loss; a ConfigError when it does not fit the images."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> LossConfig:
        """The smallest sensible setting, which the contract tests run on images of (3, 16, 16)."""
