"""Sliding tile attention: tiles of space and time see the tiles around them (Zhang et al. 2025, arXiv 2502.04507)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from artok.nn.patterns.base import PatternConfig
from artok.nn.windows import TileWindows


class Config(PatternConfig):
    """kind: tiles. tile: its sides in tokens, on each axis of the grid. window: tiles that a tile sees on each axis."""

    kind: Literal["tiles"] = "tiles"
    tile: tuple[int, ...] = Field((1, 4, 4), min_length=1)
    window: tuple[int, ...] = Field((3, 3, 3), min_length=1)

    @model_validator(mode="after")
    def _check_axes(self) -> Config:
        if len(self.tile) != len(self.window) or min(*self.tile, *self.window) < 1:
            raise ValueError("tile and window need a whole number from 1 for each axis of the grid")
        return self

    def refuse(self, grid: tuple[int, ...]) -> str | None:
        if len(grid) != len(self.tile) or any(side % own for side, own in zip(grid, self.tile, strict=True)):
            return f"with attention tiles needs a grid whose sides are multiples of the tile {self.tile}"
        return None

    def build(self, grid: tuple[int, ...], layer: int) -> TileWindows:
        return TileWindows(grid, self.tile, self.window)

    @classmethod
    def tiny(cls) -> Config:
        return cls(tile=(1, 2, 2), window=(3, 1, 2))
