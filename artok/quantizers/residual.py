"""Residual quantization: K codes per position, each of the residual of those before (Lee 2022, arXiv 2203.01941)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from artok.quantizers.codebook import CodebookConfig, CodebookQuantizer


class Config(CodebookConfig):
    """num_quantizers: codes K per position, each level with its own table of `codebook_size` vectors.

    The distance is Euclidean: the length of a residual matters, so it cannot be put on a sphere.
    """

    kind: Literal["residual"] = "residual"
    codebook_size: int = Field(64, ge=2)
    num_quantizers: int = Field(3, ge=2)

    def build(self, grid: tuple[int, ...]) -> CodebookQuantizer:
        return CodebookQuantizer(grid, self, levels=self.num_quantizers)

    @classmethod
    def tiny(cls) -> Config:
        return cls(codebook_size=16, code_dim=4, num_quantizers=2)
