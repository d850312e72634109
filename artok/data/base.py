"""Base classes of data sources: a `data:` section opens a split, and a split is read by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator
from torch import Tensor
from typing_extensions import Self

from artok.config import FREE, OPEN, Config, Part, of_kind
from artok.data.controls.base import ControlConfig
from artok.errors import DataError
from artok.oracle import MotionOracle, Oracle

SplitName = Literal["train", "test"]

Captions: TypeAlias = list[tuple[str, ...]]  # of a batch: for each image one caption, several or none

UNREADABLE = 0.01  # largest share of unreadable images in a split; a run with more stops


@dataclass
class Examples:
    """images: (B, C, R, R), or (B, C, T, R, R) of clips, uint8, where R is the size before a crop. labels: (B,) int64.

    captions: those of each image, one, several or none; None where the data have none. maps: (B, channels, R, R) uint8,
    those that the data hold beside the images, for data.control.
    """

    images: Tensor
    labels: Tensor
    captions: Captions | None = None
    maps: Tensor | None = None


class Split(ABC):
    """The images of one split, by index.

    shape: (channels, *size) of what `read` returns, (C, R, R) for images and (C, T, R, R) for clips.
    classes: their names. fingerprint: changes when the images do.
    skipped: index to reason of images that could not be read; `read` returns the next readable image instead. An image
    whose disk or network failed counts too, but is tried again whenever it is wanted.
    notes: sentences about what the source holds and the split leaves out, to be shown once.
    enlarged: indices of images seen so far whose shorter side is below R, which were enlarged.
    decodes: reading decodes files, so reading ahead saves time.
    sequential: indices are positions in an endless stream, read in ascending order; each pass has its own order. One
    thread of a process reads it and decodes in threads, whatever the number of workers.
    labels: (N,) int64 of all images, where they are known without reading these.
    captioned: `read` gives captions. uncaptioned: number of images that are known to have none all the same.
    single: for images whose channels are separate images, the labelled images that the channels are drawn from.
    oracle: for data whose captions can be checked in an image. motion_oracle: for clips in which it knows how things
    move.
    unseen: images of the combinations that neither split shows, where some are held out.
    """

    shape: tuple[int, ...]
    classes: tuple[str, ...]
    fingerprint: str
    skipped: dict[int, str]
    enlarged: set[int]
    notes: tuple[str, ...] = ()
    decodes: bool = False
    sequential: bool = False
    labels: Tensor | None = None
    captioned: bool = False
    uncaptioned: int = 0
    single: Split | None = None
    oracle: Oracle | None = None
    motion_oracle: MotionOracle | None = None
    unseen: Split | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Examples:
        """The examples at these indices. DataError: more than 1% of the split is unreadable."""


def note_skipped(split: Split, reasons: Mapping[int, str]) -> None:
    """Record unreadable images. DataError: they are more than 1% of the split."""
    split.skipped.update(reasons)
    if len(split.skipped) > UNREADABLE * len(split):
        first = "; ".join(list(split.skipped.values())[:3])
        raise DataError(
            f"{len(split.skipped)} of {len(split)} images cannot be read, more than {UNREADABLE:.0%}, "
            f"such as {first}: repair or remove such files and start again"
        )


class Augment(Config):
    """Random augmentation of training images. Lengths are shares of the image side."""

    flip: bool = Field(False, description="mirror left and right, half of the time")
    shift: float = Field(0.0, ge=0, le=0.5, description="largest translation, share of the side")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation, degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative change of size")
    shear: float = Field(0.0, ge=0, lt=1, description="largest shear")
    crop: Literal["center", "random"] = "center"


class DataConfig(Part, ABC):
    """The `data:` section.

    size: side of the images that a model sees. resize: shorter side before the crop to `size`, when it is larger.
    control: a map for each image, for generators that hear control.
    channels_apart: each channel is a separate image (see `Split.single`). holds_maps: the source may have maps beside
    its images.
    caption_templates: captions made from class names, such as "a photo of a {}", instead of the data's own.
    """

    channels_apart: ClassVar[bool] = False
    holds_maps: ClassVar[bool] = False

    size: int = Field(gt=0)
    resize: int | None = Field(None, gt=0)
    channels: Literal[1, 3] = 3
    augment: Augment = Augment()
    control: Annotated[ControlConfig | None, of_kind("data.controls"), OPEN] = None
    caption_templates: tuple[str, ...] = ()
    verify: Annotated[bool, FREE] = Field(
        False, description="list and read every file anew, where a start relies on a cached manifest"
    )
    workers: Annotated[int, FREE] = Field(
        0, ge=0, description="processes that decode images; 0 decodes in the training process"
    )

    @field_validator("caption_templates")
    @classmethod
    def _check_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := next((each for each in templates if "{}" not in each), None):
            raise ValueError(f"{wrong!r} has no {{}}, where the name of the class goes")
        return templates

    @model_validator(mode="after")
    def _check_resize(self) -> Self:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize ({self.resize}) must be at least size ({self.size}), which is cut out of it")
        return self

    @model_validator(mode="after")
    def _check_maps(self) -> Self:
        if self.control is not None and self.control.stored and not self.holds_maps:
            raise ValueError(
                "has images without maps beside them, which data.control asks for; have them made of the images, such "
                "as control={kind: edges}, or use data kind hub or folder"
            )
        return self

    @property
    def image(self) -> tuple[int, ...]:
        """(channels, *size) of what a model sees; a kind whose samples have other axes overrides it."""
        return (self.channels, self.size, self.size)

    @property
    def map(self) -> tuple[int, ...] | None:
        """(channels, *size) of the control of an image, if there is one."""
        return None if self.control is None else (self.control.count_channels(self.channels), *self.image[1:])

    @property
    def side(self) -> int:
        """The side R of the images that a split returns."""
        return self.resize or self.size

    @abstractmethod
    def open(self, split: SplitName) -> Split:
        """The split, passed through `artok.data.captions.templated`. DataError: files are missing, empty or of a wrong
        kind."""

    @classmethod
    @abstractmethod
    def tiny(cls, folder: Path) -> DataConfig:
        """A small config for the contract tests; files that it needs are written below `folder`."""
