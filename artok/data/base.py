"""What every source of images keeps to: a `data:` section opens a split, and a split is read by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from artok.config import Config, Part
from artok.errors import DataError

SplitName = Literal["train", "test"]

UNREADABLE = 0.01  # the share of a split beyond which a run stops: its images are not what their owner believes


@dataclass
class Examples:
    """images: (B, C, R, R) uint8, where R is the size before a crop. labels: (B,) int64."""

    images: Tensor
    labels: Tensor


class Split(ABC):
    """The images of one split, by index.

    shape: (channels, *size) of what `read` returns: (C, R, R) of images.
    classes: their names. fingerprint: changes when the images do.
    skipped: indices of images that could not be read, with the reason; `read` puts the next readable image in place.
    enlarged: indices of images seen so far whose shorter side is below R, so that they hold less detail than R shows.
    decodes: reading opens and decodes files, so that reading ahead pays.
    sequential: indices are positions in an endless stream, to be read in ascending order; each pass over the split
    comes in an order of its own.
    single: where each channel is an image of its own, the labelled images that the channels are drawn from.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    fingerprint: str
    skipped: dict[int, str]
    enlarged: set[int]
    decodes: bool = False
    sequential: bool = False
    single: Split | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Examples:
        """The examples at these indices; a DataError when more than 1% of the split turned out unreadable."""


def note_skipped(split: Split, reasons: Mapping[int, str]) -> None:
    """Counts unreadable images; a DataError once they are more than 1% of the split."""
    split.skipped.update(reasons)
    if len(split.skipped) > UNREADABLE * len(split):
        first = "; ".join(list(split.skipped.values())[:3])
        raise DataError(
            f"{len(split.skipped)} of {len(split)} images cannot be read, more than {UNREADABLE:.0%}, "
            f"such as {first}: mend or remove such files and start again"
        )


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
    channels_apart: each channel is an image of its own, as `Split.single` says.
    """

    channels_apart: ClassVar[bool] = False

    size: int = Field(gt=0)
    resize: int | None = Field(None, gt=0)
    channels: Literal[1, 3] = 3
    augment: Augment = Augment()
    workers: int = Field(0, ge=0, description="processes that decode images; 0 decodes in the training process")

    @model_validator(mode="after")
    def _resize_holds_the_crop(self) -> Self:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize ({self.resize}) must be at least size ({self.size}), which is cut out of it")
        return self

    @property
    def image(self) -> tuple[int, ...]:
        """(channels, *size) of what a model sees; a kind whose samples have other axes says its own."""
        return (self.channels, self.size, self.size)

    @property
    def side(self) -> int:
        """R, the side of the images that a split returns."""
        return self.resize or self.size

    @abstractmethod
    def open(self, split: SplitName) -> Split:
        """The split; a DataError in one sentence when files are missing, empty or of a wrong kind."""

    @classmethod
    @abstractmethod
    def tiny(cls, folder: Path) -> DataConfig:
        """The smallest sensible setting, which the contract tests run; files that it needs are made below `folder`."""
