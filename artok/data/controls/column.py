"""Maps that come with the images, such as depth: a column of a table, or files beside the images."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import field_validator
from torch import Tensor

from artok.data.controls.base import ControlConfig
from artok.errors import ConfigError


class Config(ControlConfig):
    """kind: column. column: name of the data's column of maps, which are pictures as the images are; they are resized,
    cropped and mirrored with them. channels: of the maps, 1 or 3.

    Data kinds `hub` and `folder` have such columns. In a folder it is a column of metadata.jsonl or metadata.csv that
    names files, or without one the files NAME.<column>.png beside NAME.png.
    """

    stored: ClassVar[bool] = True

    kind: Literal["column"] = "column"
    column: str
    channels: Literal[1, 3] = 1

    @field_validator("column")
    @classmethod
    def _check_column(cls, column: str) -> str:
        if not re.fullmatch(r"[^/\\]+", column):
            raise ValueError("column must be the name of a column, such as depth")
        return column

    def count_channels(self, image: int) -> int:
        return self.channels

    def compute(self, images: Tensor) -> Tensor:
        raise ConfigError(
            f"maps of the column '{self.column}' come with the images and are not made of pictures; give ready ones "
            "with --control-map"
        )

    @classmethod
    def tiny(cls) -> Config:
        return cls(column="depth")
