"""Attention of tiles of a grid to the tiles around them, and to whole key frames.

On a GPU FlexAttention skips what is masked. Elsewhere the keys of each tile are gathered, so that nothing of the size
of all pairs is ever computed or held.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from artok.nn.patterns.base import AttentionPattern, coordinates


def window_starts(tiles: int, window: int) -> list[int]:
    """The first of the `window` tiles that each of some tiles on an axis sees: centred on it, inside the axis."""
    return [min(max(tile - window // 2, 0), tiles - window) for tile in range(tiles)]


class TileWindows(AttentionPattern):
    """Queries of a tile see all tokens of `window` tiles around it, and those of some whole frames.

    The window is centred on the tile and moved inside the grid at its borders, so every query has as many keys (as in
    neighbourhood attention, Hassani et al. 2023, arXiv 2204.07143).

    tile: its sides in tokens, which divide the grid's. window: tiles on each axis. key_frames: those that all see.
    """

    def __init__(
        self, grid: tuple[int, ...], tile: tuple[int, ...], window: tuple[int, ...], key_frames: tuple[int, ...] = ()
    ) -> None:
        self.grid, self.tile, self.key_frames = grid, tile, key_frames
        self.tiles = tuple(side // own for side, own in zip(grid, tile, strict=True))
        self.window = tuple(min(wanted, most) for wanted, most in zip(window, self.tiles, strict=True))
        self.starts = [window_starts(most, own) for most, own in zip(self.tiles, self.window, strict=True)]
        self.size, self.area = math.prod(tile), math.prod(grid[1:])
        self.pairs = self.length * (math.prod(self.window) * self.size + len(key_frames) * self.area)

    @property
    def length(self) -> int:
        return math.prod(self.grid)

    def __call__(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        if q_BHND.is_cuda:
            return self.flex(q_BHND, k_BHND, v_BHND)
        return self.gathered(q_BHND, k_BHND, v_BHND)

    # ------------------------------------------------------------------------------------------ gathered windows

    def gathered(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """The same in plain products over (B H, tiles, keys of a tile)."""
        batch, heads, _, width = q_BHND.shape
        q = self._split(q_BHND * width**-0.5)
        k, v = (self._gather(self._split(x)) for x in (k_BHND, v_BHND))
        scores = q @ k.transpose(-2, -1)  # (B H, tiles, size, keys)
        twice = self._twice(q.device)
        if twice is not None:
            scores = scores.masked_fill(twice[:, None], -math.inf)
        own = scores.shape[-1]
        if self.key_frames:
            shared_k, shared_v = (self._key_frames(x).flatten(0, 1) for x in (k_BHND, v_BHND))
            shared = q.flatten(1, 2) @ shared_k.transpose(-2, -1)
            scores = torch.cat([scores, shared.unflatten(1, q.shape[1:3])], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        mixed = weights[..., :own] @ v
        if self.key_frames:
            mixed = mixed + (weights[..., own:].flatten(1, 2) @ shared_v).view_as(mixed)
        return self._merge(mixed).unflatten(0, (batch, heads))

    def _split(self, x_BHND: Tensor) -> Tensor:
        """(B H, tiles, tokens of a tile, D)."""
        sides = [side for pair in zip(self.tiles, self.tile, strict=True) for side in pair]
        x = x_BHND.flatten(0, 1).unflatten(1, sides)
        axes = len(self.grid)
        order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
        return x.permute(order).flatten(1, axes).flatten(2, -2)

    def _merge(self, x: Tensor) -> Tensor:
        """The inverse of `_split`, (B H, N, D)."""
        axes = len(self.grid)
        x = x.unflatten(2, self.tile).unflatten(1, self.tiles)
        order = [
            0,
            *(axis for pair in zip(range(1, axes + 1), range(axes + 1, 2 * axes + 1), strict=True) for axis in pair),
        ]
        return x.permute([*order, 2 * axes + 1]).flatten(1, -2)

    def _gather(self, x: Tensor) -> Tensor:
        """(B H, tiles, window x size, D): the tokens of the tiles that each tile sees."""
        if math.prod(self.window) == 1:
            return x
        return x[:, self._window_tiles(x.device)].flatten(2, 3)

    def _window_tiles(self, device: torch.device) -> Tensor:
        """(tiles, window) int64: which tiles each one sees."""
        seen = torch.zeros(1, 1, dtype=torch.int64)
        for starts, own, most in zip(self.starts, self.window, self.tiles, strict=True):
            axis = torch.tensor(starts)[:, None] + torch.arange(own)
            seen = (seen[:, None, :, None] * most + axis[None, :, None, :]).flatten(2).flatten(0, 1)
        return seen.to(device)

    def _twice(self, device: torch.device) -> Tensor | None:
        """(tiles, keys) bool: the keys of a window that are in a key frame too, where they count; None for none."""
        if not self.key_frames:
            return None
        frames = coordinates(torch.arange(self.length), self.grid)[0]
        keys = torch.isin(frames, torch.tensor(self.key_frames)).float()
        split = self._gather(self._split(keys.view(1, 1, -1, 1)))[0, ..., 0] > 0
        return split.to(device)

    def _key_frames(self, x_BHND: Tensor) -> Tensor:
        parts = [x_BHND[:, :, frame * self.area : (frame + 1) * self.area] for frame in self.key_frames]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    # ------------------------------------------------------------------------------------------ FlexAttention

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        seen: Tensor | None = None
        places = zip(coordinates(query, self.grid), coordinates(key, self.grid), strict=True)
        for (own, other), side, window, most in zip(places, self.tile, self.window, self.tiles, strict=True):
            start = (own // side - window // 2).clamp(0, most - window)
            ahead = other // side - start
            inside = (ahead >= 0) & (ahead < window)
            seen = inside if seen is None else seen & inside
        assert seen is not None
        for frame in self.key_frames:
            seen = seen | (key // self.area == frame)
        return seen

    def flex(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """The same by FlexAttention, on tokens in the order of their tiles, so that its blocks are full or empty."""
        order, back, mask = _flex_mask(self.grid, self.tile, self.window, self.key_frames, q_BHND.device)
        q, k, v = (x[:, :, order] for x in (q_BHND, k_BHND, v_BHND))
        mixed: Tensor = _flex(q.is_cuda)(q, k, v, block_mask=mask)
        return mixed[:, :, back]


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


@lru_cache(maxsize=32)
def _flex_mask(
    grid: tuple[int, ...],
    tile: tuple[int, ...],
    window: tuple[int, ...],
    key_frames: tuple[int, ...],
    device: torch.device,
) -> tuple[Tensor, Tensor, Any]:
    """Tokens in the order of their tiles, the way back, and the block mask in that order."""
    from torch.nn.attention.flex_attention import create_block_mask

    pattern = TileWindows(grid, tile, window, key_frames)
    order = pattern._split(torch.arange(pattern.length).view(1, 1, -1, 1)).flatten().to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return pattern.sees(order[query], order[key])

    mask = create_block_mask(sees, None, None, pattern.length, pattern.length, device=str(device))
    return order, order.argsort(), mask
