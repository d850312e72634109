"""SimVQ: the codes are a frozen random table times one learned matrix, so all of them move together and none dies."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_grid, to_sequence
from artok.quantizers.codebook import find_nearest
from artok.quantizers.gradients import rotation_trick, straight_through


class Config(QuantizerConfig):
    """codebook_size: vectors V in the table. code_dim: length D of each.
    commitment_weight: weight of the loss that keeps the latents near their codes, against 1 of the codebook loss.
    rotation_trick: gradients through a rotation (Fifty 2024) instead of straight through.
    """

    kind: Literal["simvq"] = "simvq"
    codebook_size: int = Field(256, ge=2)
    code_dim: int = Field(8, ge=2)
    commitment_weight: float = Field(0.25, ge=0)
    rotation_trick: bool = True

    def build(self, grid: tuple[int, ...]) -> SimVectorQuantizer:
        return SimVectorQuantizer(grid, self)

    @classmethod
    def tiny(cls) -> Config:
        return cls(codebook_size=16, code_dim=4)


class SimVectorQuantizer(Quantizer):
    """Codes C W with C frozen and W learned (Zhu 2024, arXiv 2411.02038); losses as in VQ-VAE.

    Not vector-quantize-pytorch's SimVQ, which renamed its parameters between 1.20 and 1.32, so that saved weights would
    not load after an update, and which is slower. Tests compare values, losses and gradients with it.
    """

    frozen: Tensor

    def __init__(self, grid: tuple[int, ...], config: Config) -> None:
        super().__init__((grid,), config.code_dim, config.codebook_size)
        self.commitment = config.commitment_weight
        self.estimator = rotation_trick if config.rotation_trick else straight_through
        self.register_buffer("frozen", torch.randn(config.codebook_size, config.code_dim) * config.code_dim**-0.5)
        self.transform = nn.Linear(config.code_dim, config.code_dim, bias=False)

    def quantize(self, latents: Tensor) -> Quantized:
        points, vectors = to_sequence(latents), self.transform(self.frozen)
        values = find_nearest(points.detach().flatten(0, 1), vectors).view(points.shape[:2])
        codes = F.embedding(values, vectors)
        losses = {
            "codebook": F.mse_loss(codes, points.detach()),
            "commitment": self.commitment * F.mse_loss(points, codes.detach()),
        }
        return Quantized(to_grid(self.estimator(points, codes), self.grids[0]), values.unsqueeze(-1), losses)

    def dequantize(self, values: Tensor) -> Tensor:
        return to_grid(F.embedding(values.squeeze(-1), self.transform(self.frozen)), self.grids[0])
