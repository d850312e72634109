"""Attention that sees everything within a block and causally over blocks, as next-scale prediction trains with
(Tian et al. 2024, section 3.2)."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128  # FlexAttention's, to whose multiples older releases restrict a sequence


def block_causal_mask(levels_N: Tensor) -> Tensor:
    """(N, N) bool, True where the query's block does not come before the key's."""
    return levels_N[:, None] >= levels_N[None, :]


def flex_block_causal(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, sizes: tuple[int, ...], scale: float) -> Tensor:
    """softmax(scale q k^T) v under the mask of blocks of these sizes, as (B, H, N, D), skipping what is masked.

    FlexAttention has no backward pass on a CPU.
    """
    length = q_BHND.shape[2]
    pad = -length % TILE
    q, k, v = (F.pad(x, (0, 0, 0, pad)) for x in (q_BHND, k_BHND, v_BHND))
    mask = _flex_mask(sizes + (pad,) * (pad > 0), q.device)  # padded keys are a last block, which no real query sees
    return _flex(q.is_cuda)(q, k, v, block_mask=mask, scale=scale)[:, :, :length]


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


@lru_cache(maxsize=8)
def _flex_mask(sizes: tuple[int, ...], device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    blocks = torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return blocks[query] >= blocks[key]

    return create_block_mask(sees, None, None, sum(sizes), sum(sizes), device=str(device))
