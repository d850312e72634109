"""MAR's per-token denoiser: a small MLP with adaptive norms (Li et al. 2024, arXiv 2406.11838, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from artok.nn.gradient_checkpointing import run
from artok.nn.time import IntervalEmbedding, TimeEmbedding
from artok.nn.vit import EPS, ConditionedOutput, ZeroLinear, modulate


class ResidualMlp(nn.Module):
    """x + gate * mlp(modulate(norm(x))), the gate starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), ZeroLinear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(modulate(self.norm(x), shift, scale)))


class DenoiserMlp(nn.Module):
    """Vectors x (M, D) at times (M,), or (1,) for all, under `condition(z)` (M, width) of z (M, Z), to (M, out).

    The condition is given ready, since many times and steps share it.
    """

    def __init__(self, dimension: int, condition: int, width: int, depth: int, out: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.time: TimeEmbedding | IntervalEmbedding = TimeEmbedding(width)
        self.condition = nn.Linear(condition, width)
        self.input = nn.Linear(dimension, width)
        self.blocks = nn.ModuleList(ResidualMlp(width) for _ in range(depth))
        self.output = ConditionedOutput(width, out)

    def forward(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        return self.denoise(x, self.time(times) + condition)

    def denoise(self, x: Tensor, given: Tensor) -> Tensor:
        """`forward` with the sum of the embedded time and the condition, (M, width) or (1, width) for all."""
        h = self.input(x)
        for block in self.blocks:
            h = run(block, h, given, checkpoint=self.gradient_checkpointing)
        return self.output(h, given)
