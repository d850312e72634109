"""What data know of their own images beyond labels: whether an image shows what a caption asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor


class Oracle(ABC):
    """Knows what images show, exactly, so that they can be scored against the captions that asked for them."""

    @abstractmethod
    def things(self, caption: str) -> int:
        """The number of objects that a caption asks for; 0 of one that is not understood."""

    @abstractmethod
    def match(self, images: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """For "exact" and each attribute (B,) float32: 1 where images (B, C, H, W) uint8 show it right, else 0.

        NaN where the caption does not ask for it, or is not understood.
        """
