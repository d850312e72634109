"""Finite scalar quantization: each channel is rounded to a few levels; no codebook is learned (Mentzer 2023)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from vector_quantize_pytorch import FSQ

from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_grid, to_sequence

LARGEST = 2**24  # codes are summed up in float32, which holds no larger whole number exactly


class Config(QuantizerConfig):
    """levels: number of values of each channel, so the width is their count and the codes their product.

    Mentzer 2023 (arXiv 2309.15505), table 1: [8, 6, 5] for 2^8 codes, [8, 5, 5, 5] for 2^10, [7, 5, 5, 5, 5] for 2^12,
    [8, 8, 8, 6, 5] for 2^14, [8, 8, 8, 5, 5, 5] for 2^16.
    """

    kind: Literal["fsq"] = "fsq"
    levels: list[Annotated[int, Field(ge=3)]] = Field([8, 6, 5], min_length=1)

    @field_validator("levels")
    @classmethod
    def _countable(cls, levels: list[int]) -> list[int]:
        if math.prod(levels) > LARGEST:
            raise ValueError(f"make {math.prod(levels)} codes, more than the {LARGEST} that can be numbered")
        return levels

    def build(self, grid: tuple[int, ...]) -> FiniteScalarQuantizer:
        return FiniteScalarQuantizer(grid, self.levels)

    @classmethod
    def tiny(cls) -> Config:
        return cls(levels=[5, 4])


class FiniteScalarQuantizer(Quantizer):
    """Bounded by tanh, rounded, gradients straight through the rounding (Mentzer 2023, section 3.1)."""

    def __init__(self, grid: tuple[int, ...], levels: list[int]) -> None:
        super().__init__((grid,), len(levels), math.prod(levels))
        with torch.device("cpu"):  # the library computes with its levels, which the meta device cannot
            self.state = FSQ(levels)

    def quantize(self, latents: Tensor) -> Quantized:
        vectors, codes = self.state(to_sequence(latents))
        values = codes.long().unsqueeze(-1)
        return Quantized(to_grid(vectors, self.grids[0]), values)

    def dequantize(self, values: Tensor) -> Tensor:
        return to_grid(self.state.indices_to_codes(values.squeeze(-1)), self.grids[0])
