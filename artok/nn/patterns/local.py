"""Local attention: a square of a frame, the same square of neighbouring frames, and whole key frames."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from artok.nn.patterns.base import PatternConfig
from artok.nn.windows import TileWindows


class Config(PatternConfig):
    """kind: local.

    window: side of the squares that tile a frame, in tokens. neighbours: frames before and after, moved inside the
    video at its ends. key_frames: frames that all tokens see, spread evenly from the first, which is one of them.
    """

    kind: Literal["local"] = "local"
    window: int = Field(4, ge=1)
    neighbours: int = Field(1, ge=0)
    key_frames: int = Field(1, ge=0)

    def refuse(self, grid: tuple[int, ...]) -> str | None:
        if len(grid) != 3 or grid[1] % self.window or grid[2] % self.window:
            return (
                f"with attention local of window {self.window} needs a grid of frames, rows and columns, whose rows "
                "and columns are multiples of it"
            )
        if self.key_frames > grid[0]:
            return f"with {self.key_frames} key frames needs as many frames of tokens"
        return None

    def build(self, grid: tuple[int, ...], layer: int) -> TileWindows:
        tile, window = (1, self.window, self.window), (1 + 2 * self.neighbours, 1, 1)
        return TileWindows(grid, tile, window, spread(self.key_frames, grid[0]))

    @classmethod
    def tiny(cls) -> Config:
        return cls(window=2, key_frames=2)


def spread(count: int, frames: int) -> tuple[int, ...]:
    """`count` of some frames, evenly from the first to the last; one is the first."""
    if count < 2:
        return (0,) * count
    return tuple(round(index * (frames - 1) / (count - 1)) for index in range(count))
