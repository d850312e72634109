"""Residual quantization: K codes a position, each for what the ones before left over (Lee 2022, arXiv 2203.01941)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from artok.quantizers.codebook import CodebookConfig, CodebookQuantizer


class Config(CodebookConfig):
    """levels: codes K a position, each level with its own table of `codes` vectors.

    The distance is Euclidean: what is left over has a length that matters, so it cannot be put on a sphere.
    """

    kind: Literal["residual"] = "residual"
    codes: int = Field(64, ge=2)
    levels: int = Field(3, ge=2)

    def build(self, grid: tuple[int, ...]) -> CodebookQuantizer:
        return CodebookQuantizer(grid, self, levels=self.levels)

    @classmethod
    def tiny(cls) -> Config:
        return cls(codes=16, width=4, levels=2)
