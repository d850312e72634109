"""Stacks of three one-channel images as colour images, to count the modes that a generator covers.

Three digits give 1,000 modes (Stacked MNIST: Metz et al. 2017, arXiv 1611.02163; Srivastava et al. 2017, arXiv
1705.07761). Image i of a split is a pure function of (seed, split, i) and of the source. Its channels are drawn
independently and uniformly from the source's images of the same split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from artok.config import OPEN, of_kind, validate
from artok.data import digits
from artok.data.base import DataConfig, Examples, Split, SplitName
from artok.data.captions import templated
from artok.data.fingerprints import digest_parts
from artok.errors import ConfigError, DataError
from artok.noise import Noise, Seed, fold


class Config(DataConfig):
    """`data: {kind: stacked}`: unlabelled colour images of three independent images of `source`.

    source: any labelled images, opened as grey images of this section's size. train, test: nominal numbers of images;
    any index can be drawn.
    """

    channels_apart: ClassVar[bool] = True

    kind: Literal["stacked"] = "stacked"
    size: int = Field(16, gt=0)
    channels: Literal[1, 3] = 3
    source: Annotated[DataConfig, of_kind("data"), OPEN] = digits.Config()
    train: int = Field(20_000, gt=0)
    test: int = Field(2_000, gt=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if self.channels != 3:
            raise ValueError("channels must be 3, one for each stacked image")
        try:
            self.single()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def single(self) -> DataConfig:
        """The source at this section's size, in one channel."""
        section = self.source.model_dump() | {"size": self.size, "resize": self.resize, "channels": 1}
        return validate(type(self.source), section, "source")

    def open(self, split: SplitName) -> Split:
        count = self.train if split == "train" else self.test
        stacks = StackedSplit(self.single().open(split), self.channels, self.seed, split, count)
        return templated(stacks, self.caption_templates)

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        return cls(size=8, train=40, test=20)


class StackedSplit(Split):
    labels: Tensor

    def __init__(self, single: Split, channels: int, seed: int, split: SplitName, count: int) -> None:
        if single.sequential:
            raise DataError("images that are streamed cannot be stacked: every stack draws from all of them")
        self.single = self._single = single
        self._count, self._seed = count, fold("stacked", seed, split)
        self.shape = (channels, *single.shape[1:])
        self.classes = ("all",)
        self.fingerprint = digest_parts("stacked 1", seed, split, channels, count, single.fingerprint)
        self.skipped, self.enlarged, self.decodes = single.skipped, single.enlarged, single.decodes
        self.notes = single.notes
        self.labels = torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return self._count

    def draw_sources(self, indices: Sequence[int]) -> Tensor:
        """Indices (B, C) int64 of the source's images in the channels of the images at these indices."""
        positions = torch.as_tensor(indices, dtype=torch.int64)
        return Noise(self._seed, positions).integers(len(self._single), self.shape[0])

    def read(self, indices: Sequence[int]) -> Examples:
        rows = self.draw_sources(indices)
        parts = self._single.read(rows.flatten().tolist())
        return Examples(parts.images.reshape(len(rows), *self.shape), self.labels[: len(rows)])
