"""Gumbel-softmax quantization: a code is drawn from scores of all codes, and gradients go through a soft draw.

Jang et al. 2017 (arXiv 1611.01144) and Maddison et al. 2017; as a bottleneck of images in DALL-E (Ramesh et al. 2021)
and in taming-transformers' f8 model of 8192 codes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_grid, to_sequence
from artok.quantizers.gradients import straight_through

TINY = 2.0**-25  # half a step of uniform numbers, whose logarithm is finite


class Config(QuantizerConfig):
    """codebook_size: vectors V in the table. code_dim: length D of each.
    temperature: of the soft draw in training; high ones mix codes, low ones give gradients of high variance.
    kl_weight: weight of the KL divergence of the scores from a uniform distribution, which keeps all codes in use.
    """

    kind: Literal["gumbel"] = "gumbel"
    codebook_size: int = Field(256, ge=2)
    code_dim: int = Field(8, ge=1)
    temperature: float = Field(1.0, gt=0)
    kl_weight: float = Field(5e-4, ge=0)

    def build(self, grid: tuple[int, ...]) -> GumbelQuantizer:
        return GumbelQuantizer(grid, self)

    @classmethod
    def tiny(cls) -> Config:
        return cls(codebook_size=16, code_dim=4)


class GumbelQuantizer(Quantizer):
    """Scores of all codes by a linear map of the latent. In training a code is drawn, hard forward and soft backward
    (straight through); else it is the one of the highest score."""

    def __init__(self, grid: tuple[int, ...], config: Config) -> None:
        super().__init__((grid,), config.code_dim, config.codebook_size)
        self.config = config
        self.scores = nn.Linear(config.code_dim, config.codebook_size)
        self.table = nn.Embedding(config.codebook_size, config.code_dim)
        nn.init.uniform_(self.table.weight, -1 / math.sqrt(config.code_dim), 1 / math.sqrt(config.code_dim))

    def quantize(self, latents: Tensor) -> Quantized:
        scores = self.scores(to_sequence(latents))
        if self.training:
            uniform = self.draws(scores).uniform(*scores.shape[1:])
            noisy = scores - (-(uniform.clamp(min=TINY)).log()).log()
            values = noisy.argmax(-1)
            soft = (noisy / self.config.temperature).softmax(-1)
            hard = F.one_hot(values, self.config.codebook_size).to(soft.dtype)
            codes = straight_through(soft, hard) @ self.table.weight
        else:
            values = scores.argmax(-1)
            codes = self.table(values)
        values = values.unsqueeze(-1)
        log_probability = scores.log_softmax(-1)
        nats = (log_probability.exp() * (log_probability + math.log(self.config.codebook_size))).sum(-1).mean()
        losses = {"divergence": self.config.kl_weight * nats}
        return Quantized(to_grid(codes, self.grids[0]), values, losses)

    def dequantize(self, values: Tensor) -> Tensor:
        return to_grid(self.table(values.squeeze(-1)), self.grids[0])
