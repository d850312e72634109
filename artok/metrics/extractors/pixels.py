"""Pixels themselves as features, of at most 8x8: nothing to train or to fetch, at once and the same on every machine.

They tell what a network's features would tell more finely: whether images repeat one another, and which parts of small
simple data they cover. Classes of photographs they cannot tell apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from artok.metrics.features import (
    Extractor,
    ExtractorConfig,
    TrainingImages,
    three_channels,
    weights_fingerprint,
)

VERSION = 1  # of everything below that changes the features
SIDE = 8


class Config(ExtractorConfig):
    """Without settings, so that all its values are comparable."""

    kind: Literal["pixels"] = "pixels"

    def build(self, training: TrainingImages | None, device: torch.device | str, cache: Path | None) -> Pixels:
        return Pixels(torch.device(device))


class Pixels(Extractor):
    """Means of pixels in [-1, 1] over the cells of an 8x8 grid, in three channels: 192 numbers. Of clips these are the
    grey means of three parts of the time."""

    def __init__(self, device: torch.device) -> None:
        self.name, self.dim, self.device = "pixels", 3 * SIDE * SIDE, device
        self.fingerprint = weights_fingerprint({}, "pixels", VERSION, SIDE)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.ndim == 5:
            grey = images.to(torch.float32).mean(1, keepdim=True) / 127.5 - 1
            return functional.adaptive_avg_pool3d(grey, (3, SIDE, SIDE)).flatten(1), None
        pixels = three_channels(images).to(torch.float32) / 127.5 - 1
        return functional.adaptive_avg_pool2d(pixels, SIDE).flatten(1), None
