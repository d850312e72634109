"""What data know of their own images and clips beyond labels.

Whether an image shows what a caption asks for, and how the object of a clip moves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Motion:
    """What the frames of B clips show: label (B, T) int64, -1 where there is no object.

    centre: (B, T, 2) of the object as (x, y) in pixels, NaN where there is none. mass: (B, T), in shares of what the
    object weighs in the data. margin: (B, T) pixels to the nearest border that it bounces off.
    """

    label: Tensor
    centre: Tensor
    mass: Tensor
    margin: Tensor


class MotionOracle(ABC):
    """Knows how the one object of a clip moves, so that clips can be compared with how objects of the data do.

    fastest: the longest way of an object from one frame to the next, in pixels.
    """

    fastest: float

    @abstractmethod
    def follow(self, clips: Tensor) -> Motion:
        """What the frames of clips (B, C, T, H, W) uint8 show."""
