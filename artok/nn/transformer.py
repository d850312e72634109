"""The Llama block: RMSNorm, attention with rotary positions and a cache, SwiGLU (Touvron et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.nn.attention import KVCache, attend
from artok.nn.dropout import Dropout
from artok.nn.rotary import rotate


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), with w1 and w3 in one product (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class SelfAttention(nn.Module):
    """Multi-head attention over a sequence (B, N, D) with rotary positions.

    qk_norm: normalise queries and keys per head before rotating (Henry et al. 2020), for stability at high rates.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = nn.RMSNorm(width // heads, eps=eps)
            self.k_norm = nn.RMSNorm(width // heads, eps=eps)

    def forward(self, x_BND: Tensor, rotary: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        qkv = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1))
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if self.qk_norm:
            qk = torch.stack([self.q_norm(qk[:, :, 0]), self.k_norm(qk[:, :, 1])], dim=2)
        q, k = rotate(qk, rotary).transpose(1, 3).unbind(2)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then x + swiglu(norm(x)), with dropout on each branch."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float = 0.0, qk_norm: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=eps)
        self.attention = SelfAttention(width, heads, qk_norm, eps)
        self.feed_forward_norm = nn.RMSNorm(width, eps=eps)
        self.feed_forward = SwiGLU(width, hidden)
        self.dropout = Dropout(dropout)

    def forward(self, x_BND: Tensor, rotary: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        x_BND = x_BND + self.dropout(self.attention(self.attention_norm(x_BND), rotary, mask, cache, layer), 0)
        return x_BND + self.dropout(self.feed_forward(self.feed_forward_norm(x_BND)), 1)
