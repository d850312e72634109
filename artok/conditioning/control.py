"""A map aligned with the sample, such as edges or depth: one vector at each position of the generator's grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from artok.conditioning.base import Conditioner, ConditionerConfig, Context, ContextShape
from artok.errors import LayoutError
from artok.layout import Condition, ConditionPart


class Config(ConditionerConfig):
    """kind: control. channels: of the map. hidden: width inside the encoder; default that of the contexts."""

    gives_map: ClassVar[bool] = True

    kind: Literal["control"] = "control"
    channels: int = Field(1, ge=1)
    hidden: int | None = Field(None, ge=1)

    def build(self, shape: ContextShape, classes: int, null: bool) -> Control:
        return Control(self, shape, null)

    @classmethod
    def tiny(cls) -> Config:
        return cls(hidden=8)


class Control(Conditioner):
    """Two linear layers on the part of the map that a position covers. It says nothing pooled or as a sequence.

    The vectors are normalised and their gain starts as the family's embeddings do: a vector that all positions share is
    the sum of many weights, which grow by the same steps as the embeddings of tokens and would soon drown these.

    A map of zeros is the null. Pixels of 8 bits are never exactly zero in [-1, 1]. With `has_null` it is a learned
    vector everywhere, which a missing map has too; else a condition without maps gives a context without one.
    """

    part: ClassVar[ConditionPart] = "control"
    length = 0

    def __init__(self, config: Config, shape: ContextShape, null: bool) -> None:
        super().__init__()
        size = shape.image[1:]
        if len(shape.grid) != len(size):
            raise LayoutError(
                f"control needs tokens whose grid has the axes of the sample, {len(size)} of them, and the grid is "
                f"{'x'.join(map(str, shape.grid))}"
            )
        self.width, self.grid, self.has_null = shape.width, shape.grid, null
        self.map = (config.channels, *size)
        self.patch = tuple(math.ceil(side / count) for side, count in zip(size, shape.grid, strict=True))
        hidden = config.hidden or shape.width
        self.encoder = nn.Sequential(
            nn.Linear(config.channels * math.prod(self.patch), hidden), nn.GELU(), nn.Linear(hidden, shape.width)
        )
        self.norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.null = nn.Parameter(torch.zeros(int(null), shape.width))

    def forward(self, condition: Condition) -> Context:
        maps, rows = condition.control, len(condition)
        if maps is None:
            neutral = torch.zeros(rows, self.width, device=self.null.device, dtype=self.null.dtype)
            if not self.has_null:
                return Context(neutral, neutral[:, None][:, :0])
            spatial = self.null.expand(rows, -1)[..., None].expand(-1, -1, math.prod(self.grid))
            return self._context(spatial.unflatten(2, self.grid), torch.zeros_like(neutral[:, 0], dtype=torch.bool))
        if tuple(maps.shape[1:]) != self.map:
            given, wanted = ("x".join(map(str, shape)) for shape in (maps.shape[1:], self.map))
            raise LayoutError(f"the control is {given} (channels, size), and this generator hears {wanted}")
        features, mapped = self.norm(self.encoder(self._patches(maps)).float()), maps.flatten(1).any(1)
        if self.has_null:
            features = torch.where(mapped[:, None, None], features, self.null.to(features.dtype))
        return self._context(features.transpose(1, 2).unflatten(2, self.grid), mapped)

    def _patches(self, maps: Tensor) -> Tensor:
        """(B, N, C * patch) of maps (B, C, *size). Axes that the grid does not divide begin with copies of their first
        entry, as causal video tokenizers have the first frame alone at their first position."""
        for axis, (side, count) in enumerate(zip(self.patch, self.grid, strict=True), 2):
            missing = side * count - maps.shape[axis]
            if missing:
                maps = torch.cat([maps.narrow(axis, 0, 1)] * missing + [maps], dim=axis)
        names = "xyz"[: len(self.grid)]
        inner = " ".join(f"({name}g {name}p)" for name in names)
        outer = " ".join(f"{name}g" for name in names)
        patch = " ".join(f"{name}p" for name in names)
        sides = {f"{name}p": side for name, side in zip(names, self.patch, strict=True)}
        return rearrange(maps, f"b c {inner} -> b ({outer}) (c {patch})", **sides)

    def _context(self, spatial: Tensor, mapped: Tensor) -> Context:
        neutral = spatial.new_zeros(len(spatial), self.width)
        return Context(neutral, neutral[:, None][:, :0], None, spatial, mapped)

    def example(self, rows: int, device: torch.device) -> Condition:
        return Condition(control=torch.ones(rows, *self.map, device=device))

    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        fill(self.norm.weight)
        fill(self.null)
