"""Edges by Canny's method (Canny 1986, "A Computational Approach to Edge Detection"), from scikit-image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from artok.data.controls.base import ControlConfig
from artok.errors import ConfigError


class Config(ControlConfig):
    """kind: edges. sigma: deviation of the blur before, in pixels. low, high: thresholds of the gradient, of pixels in
    [0, 1]; edges above `high` are kept, and those above `low` that touch them.

    An edge of any colour channel is an edge: grey alone misses those between colours of equal brightness.
    """

    kind: Literal["edges"] = "edges"
    sigma: float = Field(1.0, ge=0)
    low: float = Field(0.1, ge=0, le=1)
    high: float = Field(0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        return self

    def count_channels(self, image: int) -> int:
        return 1

    def compute(self, images: Tensor) -> Tensor:
        try:
            from skimage.feature import canny
        except ImportError:
            raise ConfigError("edges need scikit-image; install it with: pip install 'artok[control]'") from None
        if images.ndim != 4:
            raise ConfigError("edges are found in images of two axes, and these samples have other ones")
        planes = images.numpy().astype(np.float32) / 255
        found = np.zeros((len(planes), 1, *planes.shape[2:]), dtype=bool)
        for image, edges in zip(planes, found, strict=True):
            for plane in image:
                edges[0] |= canny(plane, self.sigma, self.low, self.high)
        return torch.from_numpy(found.astype(np.uint8) * 255)

    def pack(self, maps: Tensor) -> Tensor:
        """Eight pixels in a byte."""
        return torch.from_numpy(np.packbits(maps.flatten(1).numpy() > 0, axis=1))

    def unpack(self, packed: Tensor, size: tuple[int, ...]) -> Tensor:
        count = int(np.prod(size))
        bits = np.unpackbits(packed.numpy(), axis=1, count=count)
        return torch.from_numpy(bits * np.uint8(255)).view(len(packed), 1, *size)

    @classmethod
    def tiny(cls) -> Config:
        return cls()
