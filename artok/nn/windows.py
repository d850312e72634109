"""Attention of tiles of a grid to the tiles around them, and to whole key frames.

On a GPU FlexAttention skips what is masked. Elsewhere the keys of each tile are gathered, so that nothing of the size
of all pairs is ever computed or held.
"""

from __future__ import annotations

import math
from functools import cache, cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from artok.nn.attention import PLAIN_LENGTH, plain_attention
from artok.nn.patterns.base import AttentionPattern, coordinates

NEVER = -1e9  # score of a key that is left out; where all are, the other set of keys has all the weight
FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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
        """The same over tiles and the keys of each tile, (B H, tiles, tokens, D)."""
        batch, heads, _, width = q_BHND.shape
        q, k, v = (self._split(x) for x in (q_BHND, k_BHND, v_BHND))
        k, v = self._gather(k), self._gather(v)
        fused = q.device.type == "cpu" and self.length > PLAIN_LENGTH  # as in `attend`
        if not self.key_frames:
            mixed = F.scaled_dot_product_attention(q, k, v) if fused else plain_attention(q, k, v)
        else:
            shared = self._key_frames(k_BHND).flatten(0, 1), self._key_frames(v_BHND).flatten(0, 1)
            twice = self.twice.to(q.device)
            if fused:
                mixed = attend_to_both(q, (k, v), twice, tuple(x[:, None] for x in shared), width**-0.5)
            else:
                mixed = self._plain(q * width**-0.5, k, v, twice, *shared)
        return self._merge(mixed).unflatten(0, (batch, heads))

    @staticmethod
    def _plain(q: Tensor, k: Tensor, v: Tensor, twice: Tensor, shared_k: Tensor, shared_v: Tensor) -> Tensor:
        """By plain products, over the keys of windows and of key frames (B H, K, D)."""
        scores, own = (q @ k.transpose(-2, -1)).masked_fill(twice[:, None], -math.inf), k.shape[2]
        shared = q.flatten(1, 2) @ shared_k.transpose(-2, -1)
        scores = torch.cat([scores, shared.unflatten(1, q.shape[1:3])], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        mixed = weights[..., :own] @ v
        return mixed + (weights[..., own:].flatten(1, 2) @ shared_v).view_as(mixed)

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
        seen = self.window_tiles
        return x.index_select(1, seen.flatten().to(x.device)).unflatten(1, seen.shape).flatten(2, 3)

    @cached_property
    def window_tiles(self) -> Tensor:
        """(tiles, window) int64: which tiles each one sees."""
        seen = torch.zeros(1, 1, dtype=torch.int64, device="cpu")
        for tiles, window in zip(self.tiles, self.window, strict=True):
            starts = torch.tensor(window_starts(tiles, window), device="cpu")
            axis = starts[:, None] + torch.arange(window, device="cpu")
            seen = (seen[:, None, :, None] * tiles + axis[None, :, None, :]).flatten(2).flatten(0, 1)
        return seen

    @cached_property
    def twice(self) -> Tensor:
        """(tiles, keys) bool: the keys of a window that are in a key frame too, and count there."""
        frames = coordinates(torch.arange(self.length, device="cpu"), self.grid)[0]
        keys = torch.isin(frames, torch.tensor(self.key_frames, device="cpu")).float()
        return self._gather(self._split(keys.view(1, 1, -1, 1)))[0, ..., 0] > 0

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


# ---------------------------------------------------------------------------------------------- two sets of keys


def attend_to_both(
    q: Tensor, own: tuple[Tensor, Tensor], left_out: Tensor, shared: tuple[Tensor, ...], scale: float
) -> Tensor:
    """Attention of each tile's queries (G, tiles, n, D) to its own keys and values (G, tiles, m, D), of which some are
    left out (tiles, m), and to those that all tiles share (G, 1, M, D), by the fused kernel of a CPU for each set."""
    bias = torch.zeros_like(left_out, dtype=q.dtype).masked_fill(left_out, NEVER)[None, :, None]
    mixed: Tensor = _BothKeys.apply(q, *own, *shared, bias.expand(-1, -1, q.shape[2], -1), scale)
    return mixed


class _BothKeys(torch.autograd.Function):
    """Joins two fused attentions by the logarithms of their sums (FlashAttention-2, Dao 2023, arXiv 2307.08691, section
    3.1.1). With the joint output and sum in its place, each kernel's backward pass gives its part of the gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, shared_k: Tensor, shared_v: Tensor, bias: Tensor, scale: float
    ) -> Tensor:
        whole = q.flatten(1, 2)[:, None]
        mixed, total = FUSED(q, k, v, attn_mask=bias, scale=scale)
        other, rest = FUSED(whole, shared_k, shared_v, scale=scale)
        other, rest = other.view_as(mixed), rest.view_as(total)
        joint = torch.logaddexp(total, rest)
        mixed = mixed * (total - joint).exp()[..., None].to(mixed.dtype)
        mixed = torch.addcmul(mixed, other, (rest - joint).exp()[..., None].to(mixed.dtype))
        ctx.save_for_backward(q, k, v, shared_k, shared_v, bias, mixed, joint)
        ctx.scale = scale
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shared_k, shared_v, bias, mixed, joint = ctx.saved_tensors
        gradient = gradient.contiguous()
        fused = FUSED_BACKWARD
        on_q, on_k, on_v = fused(gradient, q, k, v, mixed, joint, 0.0, False, attn_mask=bias, scale=ctx.scale)
        flat = [x.flatten(1, 2)[:, None] for x in (gradient, q, mixed, joint)]
        given, whole, out, total = flat
        more, on_shared_k, on_shared_v = fused(
            given, whole, shared_k, shared_v, out, total, 0.0, False, scale=ctx.scale
        )
        return on_q + more.view_as(on_q), on_k, on_v, on_shared_k, on_shared_v, None, None


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
