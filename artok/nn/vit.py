"""The vision transformer block (Dosovitskiy et al. 2021, arXiv 2010.11929), plain and conditioned by adaptive norms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from artok.nn.attention import KVCache, attend
from artok.nn.dropout import Dropout

EPS = 1e-6


class BiasedAttention(nn.Module):
    """Multi-head self-attention over (B, N, W) with biases and no positions of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x_BNW: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """mask: as in `attend`. cache: earlier keys and values of this `layer`, to be continued."""
        q, k, v = self.qkv(x_BNW).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


def feed_forward(width: int, hidden: int, gelu: Literal["none", "tanh"] = "none") -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate=gelu), nn.Linear(hidden, width))


class VitBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on each branch."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.attention = BiasedAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps=EPS)
        self.feed_forward = feed_forward(width, hidden)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BNW: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        x_BNW = x_BNW + self.dropout(self.attention(self.attention_norm(x_BNW), mask, cache, layer), 0)
        return x_BNW + self.dropout(self.feed_forward(self.feed_forward_norm(x_BNW)), 1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, in one pass over x."""
    return torch.addcmul(shift, x, 1 + scale)


class CrossAttention(nn.Module):
    """Attention of tokens (B, N, W) to the entries (B, L, E) of a context, to be added to the tokens; zero at first.

    As in PixArt (Chen et al. 2023, arXiv 2310.00426, section 2.3) and Stable Diffusion (Rombach et al. 2022, section
    3.3), with a norm before it.
    """

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context, 2 * width)
        self.out = ZeroLinear(width, width)

    def project(self, entries_BLE: Tensor) -> Tensor:
        """The keys and values of entries, (B, 2, heads, L, W / heads)."""
        return self.key_value(entries_BLE).unflatten(-1, (2, self.heads, -1)).permute(0, 2, 3, 1, 4)

    def forward(
        self, x_BNW: Tensor, entries_BLE: Tensor, mask_BL: Tensor | None, keys_values: Tensor | None = None
    ) -> Tensor:
        """mask_BL: bool, where the context has entries; None for everywhere. keys_values: `project(entries_BLE)`, where
        they are known."""
        q = self.query(self.norm(x_BNW)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (self.project(entries_BLE) if keys_values is None else keys_values).unbind(1)
        mask = None if mask_BL is None else mask_BL[:, None, None]
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class ConditionedBlock(nn.Module):
    """DiT's block: norms without weights, shifted, scaled and gated by the condition, all starting at zero, so that the
    block starts as the identity (Peebles and Xie 2023, arXiv 2212.09748, section 3.2, adaLN-Zero).

    cross: with cross-attention to the entries of a context between the two branches.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        cross: bool = False,
        attention: nn.Module | None = None,
        inner: nn.Module | None = None,
    ) -> None:
        """attention, inner: in the place of full attention and of the feed-forward layer, (B, N, W) to (B, N, W)."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.attention = attention or BiasedAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.feed_forward = inner or feed_forward(width, hidden, "tanh")
        self.modulation = nn.Sequential(nn.SiLU(), ZeroLinear(width, 6 * width))
        self.cross = CrossAttention(width, width, heads) if cross else None

    def forward(self, x_BNW: Tensor, condition_BW: Tensor, *heard: Tensor | None) -> Tensor:
        """condition_BW: or (B, F, W), one for each frame. heard: what the cross-attention reads, as its `forward` has
        it."""
        changes = per_token(self.modulation(condition_BW), x_BNW.shape[1])
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = changes.chunk(6, dim=-1)
        h = self.attention(modulate(self.attention_norm(x_BNW), shift_1, scale_1))
        x_BNW = torch.addcmul(x_BNW, gate_1, h)
        if self.cross is not None:
            x_BNW = x_BNW + self.cross(x_BNW, *heard)
        h = self.feed_forward(modulate(self.feed_forward_norm(x_BNW), shift_2, scale_2))
        return torch.addcmul(x_BNW, gate_2, h)


class ConditionedOutput(nn.Module):
    """A norm shifted and scaled by the condition, then a linear layer; both start at zero."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), ZeroLinear(width, 2 * width))
        self.out = ZeroLinear(width, out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (..., W) and a condition that broadcasts with it, to (..., out)."""
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), shift, scale))


def per_token(changes: Tensor, length: int) -> Tensor:
    """Changes (B, C) of all tokens as (B, 1, C), or (B, F, C) of each frame as (B, N, C)."""
    return changes[:, None] if changes.ndim == 2 else changes.repeat_interleave(length // changes.shape[1], dim=1)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def initialise_linear(module: nn.Module) -> None:
    """Xavier's uniform weights and zero biases, as MAR and DiT start; for `Module.apply`."""
    if isinstance(module, nn.Linear) and not isinstance(module, ZeroLinear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos_table(grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed sine and cosine positions (N, width) of a grid, row-major (Vaswani et al. 2017, section 3.5).

    The width is shared out to the axes, the last axis first as in DiT's published table; each part holds sines, then
    cosines, of position * 10000^(-i / n).
    """
    axes = len(grid)
    coordinates = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64) for side in grid]).reshape(-1, axes)
    halves = [width // 2 // axes + (axis < width // 2 % axes) for axis in range(axes)]
    parts = []
    for half, axis in zip(halves, reversed(range(axes)), strict=True):
        frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = coordinates[:, axis, None] * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float()
