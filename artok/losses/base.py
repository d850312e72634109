"""What compares images with their reconstructions while a tokenizer is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

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

    image: (channels, *size).
    extractor: opens a feature extractor for the training data; called only by a loss that uses one, since it may read
        every image. None where only shapes are needed, on the meta device.
    channels_apart: each channel of the images is an image of its own.
    """

    image: tuple[int, ...]
    device: torch.device
    extractor: Callable[[ExtractorConfig], Extractor] | None
    channels_apart: bool = False


class Loss(nn.Module, ABC):
    """A comparison of reconstructions with images, both (B, C, H, W) or clips (B, C, T, H, W), in [-1, 1]."""

    @abstractmethod
    def forward(self, reconstructions: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Weighted scalars by name, whose sum joins the training loss."""


@dataclass(frozen=True)
class BatchContext:
    """What an adversarial loss needs to know of a batch.

    seen: images of training before it. noise: its random numbers. others: the other losses of the reconstruction, a
    scalar. last_layer: weight of the decoder's last layer, at which gradients are compared.
    """

    seen: int
    noise: Noise
    others: Tensor
    last_layer: nn.Parameter | None


class AdversarialLoss(nn.Module, ABC):
    """A loss with a critic of its own, which is trained beside the tokenizer."""

    critic: Critic
    start: int  # images before the critic trains

    @abstractmethod
    def forward(
        self, reconstructions: Tensor, images: Tensor, context: BatchContext
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted scalars that join the training loss, and scalars for the log; both empty before it joins."""

    @abstractmethod
    def settle(self, mean: Callable[[Tensor], Tensor]) -> None:
        """At the end of a step: bring in what its parts collected. mean: over all processes."""


class LossConfig(Part, ABC):
    """One entry of the `losses:` list. has_critic: whether it builds an AdversarialLoss."""

    has_critic: ClassVar[bool] = False
    start: int = Field(0, ge=0, description="images before it joins; for an adversarial loss, before its critic trains")

    @abstractmethod
    def build(self, setting: Setting) -> Loss | AdversarialLoss:
        """The loss; a ConfigError when it does not fit the images."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> LossConfig:
        """The smallest sensible setting, which the contract tests run on images of (3, 16, 16)."""


class Comparisons:
    """The losses of a `losses:` section that compare reconstructions with images; those with a critic are left out.

    Several of one kind add up: the names of the second one's scalars end in _2, those of the third one's in _3.
    """

    def __init__(self, configs: Sequence[LossConfig], losses: Sequence[Loss | AdversarialLoss]) -> None:
        """losses: built from the configs, in their order."""
        self.entries: list[tuple[Loss, int, str]] = []  # each with its start and what is added to its names
        kinds = Counter[str]()
        for config, loss in zip(configs, losses, strict=True):
            kinds[config.kind] += 1
            if isinstance(loss, Loss):
                self.entries.append((loss, config.start, f"_{kinds[config.kind]}" if kinds[config.kind] > 1 else ""))

    def __call__(self, reconstructions: Tensor, images: Tensor, seen: int) -> dict[str, Tensor]:
        """The weighted scalars of the losses that have joined after `seen` images."""
        return {
            name + suffix: value
            for loss, start, suffix in self.entries
            if seen >= start
            for name, value in loss(reconstructions, images).items()
        }
