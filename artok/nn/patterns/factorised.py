"""Factorised space-time attention: within each frame in one layer, along time in the next (ViViT, Arnab et al. 2021,
arXiv 2103.15691, section 3.3, model 3; in turns as in Latte, Ma et al. 2024, arXiv 2401.03048)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from artok.nn.patterns.base import AttentionPattern, PatternConfig, attend_in_batch


class Config(PatternConfig):
    """kind: factorised. Layers 0, 2, ... attend in space, and layers 1, 3, ... in time."""

    kind: Literal["factorised"] = "factorised"

    def refuse(self, grid: tuple[int, ...]) -> str | None:
        return None if len(grid) == 3 else "with attention factorised needs a grid of frames, rows and columns"

    def build(self, grid: tuple[int, ...], layer: int) -> Factorised:
        return Factorised(grid, in_time=layer % 2 == 1)

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Factorised(AttentionPattern):
    """Attention within frames, or between the tokens at one place of all frames."""

    def __init__(self, grid: tuple[int, ...], in_time: bool) -> None:
        self.frames, self.area, self.in_time = grid[0], math.prod(grid[1:]), in_time
        self.pairs = self.length * (self.frames if in_time else self.area)

    @property
    def length(self) -> int:
        return self.frames * self.area

    def __call__(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (self.frames, self.area)) for x in (q_BHND, k_BHND, v_BHND))
        if not self.in_time:
            return attend_in_batch(q, k, v).flatten(2, 3)
        q, k, v = (x.transpose(2, 3) for x in (q, k, v))
        return attend_in_batch(q, k, v).transpose(2, 3).flatten(2, 3)

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        if self.in_time:
            return query % self.area == key % self.area
        return query // self.area == key // self.area
