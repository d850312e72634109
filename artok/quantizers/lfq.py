"""Lookup-free quantization: each channel keeps its sign, one bit; no codebook (Yu 2023, MAGVIT-v2, arXiv 2310.05737).

Not vector-quantize-pytorch's LFQ: its entropy loss drops the result of its all-reduce, so that several processes train
on a wrong distribution, and it needs tokens x codes of memory (8 GiB at 8,192 tokens of 18 bits). Tests compare codes,
and for one process losses and gradients, with it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, to_grid, to_sequence
from artok.quantizers.distributed import count_processes
from artok.quantizers.gradients import straight_through


class Config(QuantizerConfig):
    """codebook_size: V, a power of 2, so the width is log2 V.
    entropy_weight: weight of the entropy loss. diversity_gamma: weight within it of the spread over all codes against
    the certainty of each token. temperature: of the soft assignment to codes behind both.
    commitment_weight: weight of the loss that keeps the latents near +-1.
    """

    kind: Literal["lfq"] = "lfq"
    codebook_size: int = Field(256, ge=2, le=2**24)
    entropy_weight: float = Field(0.1, ge=0)
    diversity_gamma: float = Field(1.0, ge=0)
    temperature: float = Field(0.01, gt=0)
    commitment_weight: float = Field(0.25, ge=0)

    @field_validator("codebook_size")
    @classmethod
    def _power_of_two(cls, codes: int) -> int:
        if codes & (codes - 1):
            below = 2 ** int(math.log2(codes))
            raise ValueError(f"must be a power of 2, such as {below} or {2 * below}")
        return codes

    def build(self, grid: tuple[int, ...]) -> LookupFreeQuantizer:
        return LookupFreeQuantizer(grid, self)

    @classmethod
    def tiny(cls) -> Config:
        return cls(codebook_size=16)


class LookupFreeQuantizer(Quantizer):
    """Codes sign(z), numbered with the first channel as the highest bit (Yu 2023, section 3.1)."""

    place: Tensor

    def __init__(self, grid: tuple[int, ...], config: Config) -> None:
        bits = config.codebook_size.bit_length() - 1
        super().__init__((grid,), bits, config.codebook_size)
        self.config = config
        self.register_buffer("place", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    def quantize(self, latents: Tensor) -> Quantized:
        points = to_sequence(latents)
        positive = points > 0
        codes = torch.where(positive, 1.0, -1.0)
        values = (positive * self.place).sum(-1, keepdim=True)
        losses = {"commitment": self.config.commitment_weight * F.mse_loss(points, codes)}
        if self.training:  # it costs more than all the rest
            losses["entropy"] = self.config.entropy_weight * self._entropy(points.flatten(0, 1))
        vectors = to_grid(straight_through(points, codes), self.grids[0])
        return Quantized(vectors, values, losses)

    def dequantize(self, values: Tensor) -> Tensor:
        return to_grid(torch.where((values & self.place) != 0, 1.0, -1.0), self.grids[0])

    def _entropy(self, points: Tensor) -> Tensor:
        """Mean entropy of the soft assignment of each of the points (M, D), minus `diversity` times the entropy of the
        mean assignment over all processes, in nats (Yu 2023, section 3.1).

        The bits of one token are independent. So the first is a sum over bits, and the mean of the joint distribution
        of V codes is one product of the distributions of the two halves of the bits: exact, with no tokens x V matrix.
        """
        logits = 4 * points / self.config.temperature  # of +1 against -1, from the squared distances
        certainty = (F.softplus(logits) - logits * torch.sigmoid(logits)).sum(-1).mean()
        half = (points.shape[1] + 1) // 2
        high, low = self._assignment(points[:, :half]), self._assignment(points[:, half:])
        mean = high.T @ low / len(points)
        if count_processes() > 1:
            mean = all_reduce(mean) / count_processes()
        spread = -(mean * mean.clamp(min=1e-12).log()).sum()
        return certainty - self.config.diversity_gamma * spread

    def _assignment(self, points: Tensor) -> Tensor:
        """The soft assignment (M, 2**bits) of points (M, bits) to the corners of their cube; ones when bits is 0."""
        bits = points.shape[1]
        numbers = torch.arange(2**bits, device=points.device).unsqueeze(1)
        corners = torch.where((numbers & self.place[len(self.place) - bits :]) != 0, 1.0, -1.0)
        return (2 / self.config.temperature * points @ corners.T).softmax(-1)
