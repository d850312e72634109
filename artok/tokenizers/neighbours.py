"""Codes that lie near one another in a tokenizer's codebook, and tokens with some codes replaced by such neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from artok.errors import ConfigError
from artok.layout import Codec, TokenLayout, Tokens
from artok.noise import Noise

ELEMENTS = 2**22  # numbers held at once


@torch.no_grad()
def near_codes(codec: Codec, count: int, device: torch.device | str = "cpu") -> Tensor:
    """For each code the `count` others whose vectors lie nearest, (S, K, V, count) int64, nearest first.

    A code's vector is what it adds to the latent in the middle of the image, in Euclidean distance: so it holds for
    learned tables, for FSQ and LFQ, which have none, for each level of a residual quantizer, and for each scale with
    its own convolution. Smaller codebooks give as many neighbours as they have. ConfigError: the tokens are continuous.
    """
    layout = codec.layout
    if layout.vocab is None:
        raise ConfigError("continuous tokens have no codes, and so no neighbours among them")
    count = min(count, layout.vocab - 1)
    scales = []
    for positions in layout.scales():
        levels = [_vectors(codec, layout.vocab, positions, level, device) for level in range(layout.codes)]
        scales.append(torch.stack([_nearest_others(vectors, count) for vectors in levels]))
    return torch.stack(scales)


def _vectors(codec: Codec, vocab: int, positions: slice, level: int, device: torch.device | str) -> Tensor:
    """What each code, set at all positions of a scale, adds in the middle of the latent, (V, D) float64."""
    layout = codec.layout
    middle = sum(side // 2 * math.prod(layout.grid[axis + 1 :]) for axis, side in enumerate(layout.grid))
    known = None
    if len(layout.grids) > 1:
        known = torch.zeros(layout.length, dtype=torch.bool, device=device)
        known[positions] = True
    parts = []
    for codes in torch.arange(vocab, device=device).split(_rows(layout)):
        values = torch.zeros(len(codes), *layout.value_shape(), dtype=torch.int64, device=device)
        values[:, positions, level] = codes[:, None]
        latents = codec.embed(Tokens(values, layout, None if known is None else known.expand(len(codes), -1)))
        parts.append(latents.flatten(2)[:, :, middle].double())
    return torch.cat(parts)


def _rows(layout: TokenLayout) -> int:
    return max(1, ELEMENTS // (layout.width * math.prod(layout.grid)))


def _nearest_others(vectors: Tensor, count: int) -> Tensor:
    """Indices (V, count) of the nearest other vectors of each of (V, D)."""

    def blocks() -> Iterator[Tensor]:
        for rows in torch.arange(len(vectors), device=vectors.device).split(max(1, ELEMENTS // len(vectors))):
            distance = torch.cdist(vectors[rows], vectors, compute_mode="donot_use_mm_for_euclid_dist")
            distance[torch.arange(len(rows), device=rows.device), rows] = torch.inf
            yield distance.topk(count, largest=False).indices

    return torch.cat(list(blocks()))


def replace_codes(tokens: Tokens, near: Tensor, share: float | Tensor, noise: Noise) -> Tokens:
    """The tokens with each code replaced, with probability `share`, by one of its neighbours, all alike.

    near: (S, K, V, count) from `near_codes`. share: of all images, or of each (B, 1, 1). noise: the images' random
    numbers. The codes replaced at a small share are among those at a larger one, and their neighbours are the same,
    where both begin with equal noise.
    """
    shape = tokens.layout.value_shape()
    chosen = noise.uniform(*shape) < share
    which = noise.integers(near.shape[-1], *shape)
    neighbours = torch.empty_like(tokens.values)
    for scale, positions in enumerate(tokens.layout.scales()):
        for level in range(tokens.layout.codes):
            own, pick = tokens.values[:, positions, level], which[:, positions, level]
            neighbours[:, positions, level] = near[scale, level][own, pick]
    return replace(tokens, values=torch.where(chosen, neighbours, tokens.values))
