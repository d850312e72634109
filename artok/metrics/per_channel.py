"""An extractor of single channels put to each channel of images whose channels are images of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from artok.metrics.features import Extractor, Maps


class PerChannel(Extractor):
    """Features of the channels one after another; its classes are the modes, all combinations of theirs.

    The first channel counts most, as in `artok.metrics.modes.of_stacks`.
    """

    def __init__(self, single: Extractor, channels: int) -> None:
        self.single, self.channels = single, channels
        self.name, self.dim, self.device = f"{single.name} of channels", channels * single.dim, single.device
        self.fingerprint = f"{single.fingerprint}x{channels}"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, C D) of images (B, C, H, W), and logits (B, classes ** C), the sums of the channels'."""
        features, logits = self.single(images.flatten(0, 1)[:, None])
        joined = features.unflatten(0, (len(images), self.channels)).flatten(1)
        if logits is None:
            return joined, None
        each = logits.unflatten(0, (len(images), self.channels)).unbind(1)
        modes = each[0]
        for more in each[1:]:
            modes = torch.flatten(modes[:, :, None] + more[:, None], 1)
        return joined, modes

    def maps(self, images: Tensor, layers: Sequence[int] | None) -> list[Tensor]:
        return maps_of_channels(self.single.maps)(images, layers)


def maps_of_channels(single: Maps) -> Maps:
    """Maps of each channel of images (B, C, H, W) by itself, one after another, (B, C D, h, w) where single gives D."""

    def joined(images: Tensor, layers: Sequence[int] | None) -> list[Tensor]:
        maps = single(images.flatten(0, 1)[:, None], layers)
        return [each.unflatten(0, images.shape[:2]).flatten(1, 2) for each in maps]

    return joined
