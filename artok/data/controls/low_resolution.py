"""A copy of the image at low resolution, enlarged again: what super-resolution starts from."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from artok.data.controls.base import ControlConfig
from artok.errors import ConfigError


class Config(ControlConfig):
    """kind: low_resolution. factor: by which every side is divided; the mean of the pixels that a small one covers
    fills their place in the map."""

    kind: Literal["low_resolution"] = "low_resolution"
    factor: int = Field(2, ge=2)

    def count_channels(self, image: int) -> int:
        return image

    def compute(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[2:])
        if any(side % self.factor for side in size):
            raise ConfigError(
                f"data.control.factor {self.factor} does not divide images of {'x'.join(map(str, size))} pixels"
            )
        small = tuple(side // self.factor for side in size)
        means = F.interpolate(images.float(), size=small, mode="area")
        return self.unpack(means.round().to(images.dtype), size)

    def pack(self, maps: Tensor) -> Tensor:
        """One pixel of each that are equal."""
        step = slice(None, None, self.factor)
        return maps[(slice(None), slice(None), *(step for _ in maps.shape[2:]))].contiguous()

    def unpack(self, packed: Tensor, size: tuple[int, ...]) -> Tensor:
        for axis in range(2, packed.ndim):
            packed = packed.repeat_interleave(self.factor, dim=axis)
        return packed

    @classmethod
    def tiny(cls) -> Config:
        return cls()
