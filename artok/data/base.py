"""What every source of images keeps to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from artok.config import Config, Part

SplitName = Literal["train", "test"]


@dataclass
class Examples:
    """images: (B, C, R, R) uint8, where R is the size before a crop. labels: (B,) int64."""

    images: Tensor
    labels: Tensor


class Split(ABC):
    """The images of one split, by index.

    shape: (C, R, R) of what `read` returns. classes: their names. fingerprint: changes when the images do.
    skipped: indices of images that could not be read, with the reason; `read` puts the next readable image in place.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    fingerprint: str
    skipped: dict[int, str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Examples:
        """The examples at these indices; a DataError when more than 1% of the split turned out unreadable."""


class Augment(Config):
    """Random changes of training images, as shares of the image side where they are lengths."""

    flip: bool = Field(False, description="mirror left and right, half of the time")
    shift: float = Field(0.0, ge=0, le=0.5, description="largest translation, share of the side")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation, degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative change of size")
    shear: float = Field(0.0, ge=0, lt=1, description="largest shear")
    crop: Literal["center", "random"] = "center"


class DataConfig(Part, ABC):
    """The `data:` section.

    size: side of the images that a model sees. resize: shorter side before the crop to `size`, when it is larger.
    """

    size: int = Field(gt=0)
    resize: int | None = Field(None, gt=0)
    channels: Literal[1, 3] = 3
    augment: Augment = Augment()
    workers: int = Field(0, ge=0, description="processes that decode images; 0 decodes in the training process")

    @abstractmethod
    def open(self, split: SplitName) -> Split:
        """The split; a DataError in one sentence when files are missing, empty or of a wrong kind."""
