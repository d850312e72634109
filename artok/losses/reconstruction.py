"""Pixel losses: mean absolute and mean squared error."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from artok.losses.base import Loss, LossConfig, Setting


class Config(LossConfig):
    """kind: reconstruction. l1, l2: weights of the mean absolute and the mean squared error."""

    kind: Literal["reconstruction"] = "reconstruction"
    l1: float = Field(1.0, ge=0)
    l2: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Config:
        if not self.l1 and not self.l2:
            raise ValueError("give l1 or l2 a weight above 0")
        return self

    def build(self, setting: Setting) -> PixelLoss:
        return PixelLoss(self)

    @classmethod
    def tiny(cls) -> Config:
        return cls(l1=1.0, l2=1.0)


class PixelLoss(Loss):
    """l1 mean |x - y| + l2 mean (x - y)^2, over all numbers of the batch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, reconstructions: Tensor, images: Tensor) -> dict[str, Tensor]:
        losses = {}
        if self.config.l1:
            losses["l1"] = self.config.l1 * F.l1_loss(reconstructions, images)
        if self.config.l2:
            losses["l2"] = self.config.l2 * F.mse_loss(reconstructions, images)
        return losses
