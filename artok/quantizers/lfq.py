"""Lookup-free quantization: each channel keeps its sign, one bit; no codebook (Yu 2023, MAGVIT-v2, arXiv 2310.05737).

Own code and not the library's LFQ: its entropy loss drops the result of its all-reduce, so that several processes
train on a wrong distribution, and needs tokens x codes of memory (8 GiB at 8,192 tokens of 18 bits). Tests hold the
codes and, for one process, the losses to the library's.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce

from artok.quantizers.base import Quantized, Quantizer, QuantizerConfig, code_usage, to_grid, to_sequence
from artok.quantizers.codebook import several_processes
from artok.quantizers.gradients import straight_through

GROUP = 10  # bits whose joint distribution is kept: 1,024 columns


class Config(QuantizerConfig):
    """codes: V, a power of 2, so the width is log2 V.
    entropy: weight of the entropy loss. diversity: weight within it of the spread over all codes against the certainty
    of each token. temperature: of the soft assignment to codes behind both.
    commitment: weight of the loss that keeps the latents near +-1.
    """

    kind: Literal["lfq"] = "lfq"
    codes: int = Field(256, ge=2, le=2**24)
    entropy: float = Field(0.1, ge=0)
    diversity: float = Field(1.0, ge=0)
    temperature: float = Field(0.01, gt=0)
    commitment: float = Field(0.25, ge=0)

    @field_validator("codes")
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
        return cls(codes=16)


class LookupFreeQuantizer(Quantizer):
    """Codes sign(z), numbered with the first channel as the highest bit (Yu 2023, section 3.1)."""

    place: Tensor

    def __init__(self, grid: tuple[int, ...], config: Config) -> None:
        bits = config.codes.bit_length() - 1
        super().__init__((grid,), bits, config.codes)
        self.config = config
        self.register_buffer("place", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    def quantize(self, latents: Tensor) -> Quantized:
        points = to_sequence(latents)
        positive = points > 0
        codes = torch.where(positive, 1.0, -1.0)
        values = (positive * self.place).sum(-1, keepdim=True)
        losses = {
            "entropy": self.config.entropy * self._entropy(points.flatten(0, 1)),
            "commitment": self.config.commitment * F.mse_loss(points, codes),
        }
        vectors = to_grid(straight_through(points, codes), self.grids[0])
        return Quantized(vectors, values, losses, code_usage(values, self.config.codes))

    def dequantize(self, values: Tensor) -> Tensor:
        return to_grid(torch.where((values & self.place) != 0, 1.0, -1.0), self.grids[0])

    def _entropy(self, points: Tensor) -> Tensor:
        """Mean entropy of the soft assignment of each of the points (M, D), minus `diversity` times the entropy of the
        mean assignment, in nats (Yu 2023, section 3.1).

        The assignment factorises over the bits, so the first is a sum over bits. The second is exact up to `GROUP`
        bits; above, it is the sum over groups of bits (as in Open-MAGVIT2), which the joint entropy cannot exceed.
        """
        logits = 4 * points / self.config.temperature  # of +1 against -1, from the squared distances
        certainty = (F.softplus(logits) - logits * torch.sigmoid(logits)).sum(-1).mean()
        groups = math.ceil(points.shape[1] / GROUP)
        spread = sum(self._mean_entropy(group) for group in points.tensor_split(groups, dim=1))
        return certainty - self.config.diversity * spread

    def _mean_entropy(self, points: Tensor) -> Tensor:
        """Entropy of the mean assignment of points (M, bits) to the 2**bits corners, over all processes in training."""
        corners = torch.cartesian_prod(*[points.new_tensor([-1.0, 1.0])] * points.shape[1]).view(-1, points.shape[1])
        mean = (2 / self.config.temperature * points @ corners.T).softmax(-1).mean(0)
        if self.training and several_processes():
            mean = all_reduce(mean) / distributed.get_world_size()
        return -(mean * mean.clamp(min=1e-5).log()).sum()
