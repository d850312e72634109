"""Scaled dot-product attention, and the cache that makes decoding one token cost one token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_LENGTH = 1024  # longest key sequence for which a CPU holds the full score matrix
PLAIN_SCORES = 2**24  # most scores of a pass without gradients: larger matrices leave the cache


def attend(
    q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(scale q k^T) v, as (B, H, N, D) (Vaswani et al. 2017, eq. 1).

    mask: bool, broadcastable to (B, H, N, M), True where a query sees a key. scale: D ** -0.5 unless given.
    """
    # not asked in export, which would fix the batch size to answer
    counts = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    many = counts and math.prod(q_BHND.shape[:3]) * k_BHMD.shape[2] > PLAIN_SCORES
    if q_BHND.device.type != "cpu" or k_BHMD.shape[2] > PLAIN_LENGTH or many:
        return F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, attn_mask=mask, scale=scale)
    return plain_attention(q_BHND, k_BHMD, v_BHMD, mask, scale)


def plain_attention(
    q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """`attend` by plain products: on a CPU and for short sequences they beat the fused kernel, in bfloat16 by about
    2 to 1."""
    scores_BHNM = (q_BHND * (scale or q_BHND.shape[-1] ** -0.5)) @ k_BHMD.transpose(-2, -1)
    if mask is not None:
        scores_BHNM = scores_BHNM.masked_fill(~mask, -math.inf)
    return scores_BHNM.softmax(-1, dtype=torch.float32).to(v_BHMD.dtype) @ v_BHMD


def causal_mask(
    length: int,
    device: torch.device,
    before: int = 0,
    prefix_BL: Tensor | None = None,
    rows_B: Tensor | None = None,
    apart: int = 0,
) -> Tensor | None:
    """For N positions after `before` cached ones, (N, before + N) bool: a position sees itself and what comes before.
    None where each sees everything.

    prefix_BL: which of the first L positions hold an entry; then (B, 1, N, before + N), and nothing sees padding but
    padding itself (as in LlamaGen), since attention over nothing is not a number. rows_B: how many cached positions
    each row comes after, where that differs, at most `before`; then (B, 1, N, before + N). apart: of the last so many
    positions none sees another.
    """
    if length == 1 and prefix_BL is None and rows_B is None:
        return None
    if rows_B is None:
        sees = torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)
    else:
        own_BN = rows_B[:, None] + torch.arange(length, device=device)
        sees = (torch.arange(before + length, device=device) <= own_BN[..., None])[:, None]
    if apart:
        sees[..., -apart:, -apart:] = torch.eye(apart, dtype=torch.bool, device=device)
    if prefix_BL is None:
        return sees
    entries = F.pad(prefix_BL, (0, before + length - prefix_BL.shape[1]), value=True)[:, None, None]
    return sees & (entries | torch.eye(length, before + length, dtype=torch.bool, device=device).roll(before, 1))


@dataclass
class KVCache:
    """Keys and values of every layer, allocated once and written at a position.

    keys, values: (layers, B, H, N, D). filled: positions written so far; lowering it takes positions back. rows: those
    of each row (B,) int64, where they differ; `filled` is then the largest.
    """

    keys: Tensor
    values: Tensor
    filled: int = 0
    rows: Tensor | None = None

    @classmethod
    def allocate(
        cls, layers: int, batch: int, heads: int, length: int, head_width: int, device: torch.device, dtype: torch.dtype
    ) -> KVCache:
        shape = (layers, batch, heads, length, head_width)
        # zeros, since attention gives a row's unwritten positions no weight, and 0 times NaN is NaN
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def __len__(self) -> int:
        return self.keys.shape[1]

    def __getitem__(self, rows: slice) -> KVCache:
        """Some rows, as views."""
        return KVCache(self.keys[:, rows], self.values[:, rows], self.filled)

    def write(self, layer: int, k_BHND: Tensor, v_BHND: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's keys and values at `filled`; all of that layer's up to there, as views."""
        count = k_BHND.shape[2]
        end = self.filled + count
        if self.rows is None:
            self.keys[layer, :, :, self.filled : end] = k_BHND
            self.values[layer, :, :, self.filled : end] = v_BHND
        else:
            places_B1N1 = (self.rows[:, None] + torch.arange(count, device=self.rows.device))[:, None, :, None]
            self.keys[layer].scatter_(2, places_B1N1.expand_as(k_BHND), k_BHND.to(self.keys.dtype))
            self.values[layer].scatter_(2, places_B1N1.expand_as(v_BHND), v_BHND.to(self.values.dtype))
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
