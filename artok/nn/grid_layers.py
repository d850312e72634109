"""Layers of transformers that know the grid of their tokens: sparse or rotary attention, and convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from artok.nn.attention import attend
from artok.nn.patterns.base import AttentionPattern
from artok.nn.rotary import rotate

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by the axes of a grid


class GridAttention(nn.Module):
    """Multi-head self-attention over the tokens (B, N, W) of a grid, with the weights of `BiasedAttention`.

    pattern: which tokens see which; None for all. rotary: the table of `rotary_table` for the grid; None for no
    positions of its own.
    """

    def __init__(self, width: int, heads: int, pattern: AttentionPattern | None, rotary: Tensor | None) -> None:
        super().__init__()
        self.heads, self.pattern = heads, pattern
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.rotary: Tensor | None
        self.register_buffer("rotary", rotary, persistent=False)

    def forward(self, x_BNW: Tensor) -> Tensor:
        qkv = self.qkv(x_BNW).unflatten(-1, (3, self.heads, -1))
        if self.rotary is None:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
        else:
            q, k = rotate(qkv[:, :, :2], self.rotary).permute(2, 0, 3, 1, 4)
            v = qkv[:, :, 2].transpose(1, 2)
        mixed = (attend if self.pattern is None else self.pattern)(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class ConvFeedForward(nn.Module):
    """A feed-forward layer whose first product also reads the tokens beside each one: a convolution with kernel 3 on
    each axis of the grid, GELU, a linear layer. (B, N, W) to (B, N, W).

    What moves is then seen from the next frame's tokens, which attention has to learn from positions.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        self.neighbours = CONVOLUTIONS[len(grid)](width, hidden, 3, padding=1)
        self.out = nn.Linear(hidden, width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        h = self.neighbours(x_BNW.transpose(1, 2).unflatten(2, self.grid))
        return self.out(F.gelu(h.flatten(2).transpose(1, 2), approximate="tanh"))


class PastFrames(nn.Module):
    """What the frames before tell of each place of a video: a causal convolution over the `frames` frames before a
    token's own and 3 x 3 places around it, (B, N, W) to (B, N, W). It starts at zero."""

    def __init__(self, width: int, grid: tuple[int, ...], frames: int) -> None:
        super().__init__()
        self.grid, self.frames = grid, frames
        self.read = nn.Conv3d(width, width, (frames, 3, 3), padding=(0, 1, 1))
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)  # type: ignore[arg-type]

    def forward(self, x_BNW: Tensor) -> Tensor:
        x = x_BNW.transpose(1, 2).unflatten(2, self.grid)
        read: Tensor = self.read(F.pad(x, (0, 0, 0, 0, self.frames, 0))[:, :, :-1])
        return read.flatten(2).transpose(1, 2)
