"""What every kind of control keeps to: a map for each image, made after the image was augmented."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from artok.config import Part


class ControlConfig(Part, ABC):
    """The `control:` key of a data section. stored: the maps come with the images and are augmented as they are; other
    kinds are computed from the augmented images."""

    stored: ClassVar[bool] = False

    @abstractmethod
    def count_channels(self, image: int) -> int:
        """Channels of the maps, for images of so many."""

    @abstractmethod
    def compute(self, images: Tensor) -> Tensor:
        """Maps (B, channels, *size) uint8 of images (B, C, *size) uint8. ConfigError: maps are not made of images."""

    def pack(self, maps: Tensor) -> Tensor:
        """Maps in fewer bytes, (B, ...) uint8, to be kept; `unpack` gives them back exactly."""
        return maps

    def unpack(self, packed: Tensor, size: tuple[int, ...]) -> Tensor:
        """The maps (B, channels, *size) that were packed."""
        return packed

    @classmethod
    @abstractmethod
    def tiny(cls) -> ControlConfig:
        """A setting for the contract tests."""
