"""Clips of one handwritten digit that moves straight on and bounces off the borders of the frame.

Clip i of a split is a pure function of (seed, split, i). Positions and velocities are multiples of 1/128 pixel, so
every trajectory is exact, of any length, and a longer clip of the same index continues a shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from artok.data import digits
from artok.data.base import DataConfig, Examples, Split, SplitName
from artok.data.captions import templated
from artok.data.digit_oracle import DigitOracle
from artok.data.drawing import paste_glyphs
from artok.data.fingerprints import digest_parts, digest_tensor
from artok.noise import Noise, Seed, fold

STEPS = 128  # positions per pixel; glyphs of 8 bits at such positions are drawn exactly in float32


class Config(DataConfig):
    """`data: {kind: moving_digits}`: clips (channels, frames, size, size) of a digit of scikit-learn on black.

    glyphs: different pictures of each digit, the most typical ones, which train and test share. digit: side of a digit,
    and speed: slowest and fastest, in shares of the frame's side and those per frame. train, test: nominal numbers of
    clips; any index can be drawn.
    """

    kind: Literal["moving_digits"] = "moving_digits"
    size: int = Field(32, ge=8)
    channels: Literal[1, 3] = 1
    frames: int = Field(17, ge=1)
    glyphs: int = Field(1, ge=1, le=100)
    digit: float = Field(0.4375, gt=0, lt=1)
    speed: tuple[float, float] = (0.0125, 0.03125)
    train: int = Field(10_000, gt=0)
    test: int = Field(1_000, gt=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_motion(self) -> Self:
        if not 0 <= self.speed[0] <= self.speed[1] <= 1 - self.digit:
            raise ValueError(
                f"speed {list(self.speed)} must ascend from 0 to at most {1 - self.digit:g}, the room beside the digit"
            )
        return self

    @property
    def image(self) -> tuple[int, ...]:
        return (self.channels, self.frames, self.size, self.size)

    def open(self, split: SplitName) -> Split:
        return templated(MovingDigitsSplit(self, split), self.caption_templates)

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        return cls(size=8, frames=5, train=40, test=20)


@dataclass(frozen=True)
class Trajectories:
    """What moves in B clips. glyph: (B,) int64. start, velocity: (B, 2) int64 as (x, y), of the glyph's upper left
    corner, in 1/128 pixel and those per frame. room: its largest coordinate."""

    glyph: Tensor
    start: Tensor
    velocity: Tensor
    room: int

    def corners(self, frames: int) -> Tensor:
        """(B, frames, 2) int64: the corner in each frame, reflected where it meets a border."""
        way = self.start[:, None] + self.velocity[:, None] * torch.arange(frames)[:, None]
        folded = way.remainder(2 * self.room)
        return torch.minimum(folded, 2 * self.room - folded)


class MovingDigitsSplit(Split):
    labels: Tensor

    def __init__(self, config: Config, split: SplitName) -> None:
        self._seed = fold("moving digits", config.seed, split)
        self._count = config.train if split == "train" else config.test
        self._side = max(1, round(config.digit * config.side))
        self._speed = tuple(share * config.side * STEPS for share in config.speed)
        self.shape = (config.channels, config.frames, config.side, config.side)
        self.glyphs, self._glyph_labels = typical_digits(self._side, config.glyphs)
        self.motion_oracle = DigitOracle(self.glyphs, self._glyph_labels, config.side, self._speed[1] / STEPS)
        self.classes = tuple(str(digit) for digit in range(10))
        self.fingerprint = digest_parts(
            "moving digits 1", config.seed, split, self._count, self.shape, config.speed, digest_tensor(self.glyphs)
        )
        self.skipped = {}
        self.enlarged = set()
        self.labels = self._glyph_labels[self.trajectories(range(self._count)).glyph]

    def __len__(self) -> int:
        return self._count

    def trajectories(self, indices: Sequence[int] | Tensor) -> Trajectories:
        """How the digits of the clips at these indices move; the same for every number of frames."""
        draws_B5 = Noise(self._seed, torch.as_tensor(indices, dtype=torch.int64)).uniform(5).double()
        room = (self.shape[-1] - self._side) * STEPS
        slow, fast = self._speed
        speed, angle = slow + (fast - slow) * draws_B5[:, 3], 2 * math.pi * draws_B5[:, 4]
        return Trajectories(
            glyph=(draws_B5[:, 0] * len(self.glyphs)).long(),
            start=(draws_B5[:, 1:3] * (room + 1)).long(),
            velocity=(speed[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)).round().long(),
            room=room,
        )

    def read(self, indices: Sequence[int]) -> Examples:
        moving = self.trajectories(indices)
        clips = draw(self.glyphs[moving.glyph], moving.corners(self.shape[1]), self.shape[-1])
        images = clips[:, None].expand(-1, self.shape[0], -1, -1, -1).contiguous()
        return Examples(images, self._glyph_labels[moving.glyph])


@cache
def typical_digits(side: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` pictures of each digit (10 * count, side, side) uint8, the nearest to the mean of their class among the
    training digits, and their labels (10 * count,)."""
    small, split = digits.Config(size=8).open("train"), digits.Config(size=side).open("train")
    assert small.labels is not None
    pixels = small.read(range(len(small))).images.flatten(1).long()
    rows = []
    for digit in range(10):
        of_class = (small.labels == digit).nonzero().flatten()
        total = pixels[of_class].sum(0)  # whole numbers, so that the order is the same on every machine
        distance = (len(of_class) * pixels[of_class] - total).square().sum(1)
        rows += of_class[distance.argsort(stable=True)[:count]].tolist()
    examples = split.read(rows)
    return examples.images[:, 0], examples.labels


def draw(glyphs: Tensor, corners: Tensor, side: int) -> Tensor:
    """Clips (B, T, side, side) uint8 of glyphs (B, g, g) uint8 whose upper left corners are at (B, T, 2) int64, as
    (x, y) in 1/128 pixel."""
    frames = corners.shape[1]
    # Every product and sum is a multiple of 1/128^2 below 256, so float32 is exact in any order of summing.
    places = corners.flatten(0, 1).float() / STEPS
    drawn = paste_glyphs(glyphs.float().repeat_interleave(frames, 0), places, side)
    return drawn.round().to(torch.uint8).unflatten(0, (-1, frames))
