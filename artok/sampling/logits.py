"""Draws tokens from logits: temperature, top-k, top-p, and one uniform number per token."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncate(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (..., V) with the tail at -inf.

    top_k keeps logits at or above the k-th largest (Fan et al. 2018). top_p then drops a token if the more likely ones
    have a total probability above p (Holtzman et al. 2020), so at least one stays.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -math.inf)
    if top_p is not None and top_p < 1:
        descending, order = logits.sort(dim=-1, descending=True)
        probability = descending.softmax(-1)
        before = probability.cumsum(-1) - probability
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(drop, -math.inf)
    return logits


def probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """The sampling distribution (..., V) in float32, for a temperature above 0."""
    return truncate(logits.float() / temperature, top_k, top_p).softmax(-1)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """A token (...,) int64 from logits (..., V), where the cumulative distribution passes `uniform` (...,) in [0, 1).

    One number per token makes a sample independent of its batch. Temperature 0 takes the most likely token.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = probabilities(logits, temperature, top_k, top_p).double().cumsum(-1)
    target = uniform.double()[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True)[..., 0]
