"""Draws tokens from logits: temperature, top-k, top-p, and one uniform number per token."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncate(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (..., V) with the tail at -inf.

    top_k keeps logits at or above the k-th largest (Fan et al. 2018). top_p then drops a token if the more likely ones
    have a total probability above p (Holtzman et al. 2020), so at least one stays, with all that are as likely.
    """
    vocab = logits.shape[-1]
    if top_p is not None and top_p >= 1:
        top_p = None
    if (top_k is None or top_k >= vocab) and top_p is None:
        return logits
    largest = logits.topk(min(top_k or vocab, vocab), dim=-1).values  # in descending order
    smallest = largest[..., -1:]
    if top_p is not None:
        kept = logits.masked_fill(logits < smallest, -math.inf)  # with all that equal the k-th largest
        probability = (largest - kept.logsumexp(-1, keepdim=True)).exp()
        before = probability.cumsum(-1) - probability
        smallest = largest.masked_fill(before > top_p, math.inf).amin(-1, keepdim=True)
    return logits.masked_fill(logits < smallest, -math.inf)


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


def draw_gumbel(
    logits: Tensor, gumbel: Tensor | None, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """A token (...,) int64 from logits (..., V) and Gumbel noise of their shape: the one with the largest sum of both
    (Maddison et al. 2014, arXiv 1411.0030). Temperature 0 takes the most likely token without noise.

    Under the same noise two distributions at a total variation T give the same token with a probability of at least
    (1 - T) / (1 + T), and rounding changes a token only where the two largest sums are within it.
    """
    if gumbel is None:
        return logits.argmax(-1)
    return (truncate(logits.float() / temperature, top_k, top_p) + gumbel).argmax(-1)
