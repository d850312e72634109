"""Counts query-key pairs of full and sparse attention over the tokens of a video.

A video's grid is (frames, rows, columns) of tokens. A layer takes 4 x width x pairs FLOPs: queries by keys and weights
by values, a multiply-add counted as two. Its scores take heads x pairs numbers if they are held at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from artok.errors import ConfigError
from artok.nn.patterns.base import PatternConfig
from artok.nn.windows import TileWindows

HALF = 2  # bytes of a bfloat16 number

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Pattern:
    """tokens: of the whole video. pairs: of a query and a key that it sees, per layer. held: tokens whose keys and
    values are needed at the same time."""

    name: str
    tokens: int
    pairs: int
    held: int

    def flops(self, depth: int, width: int) -> float:
        """FLOPs of scores and weighted sums, one forward pass through all layers."""
        return 4.0 * depth * width * self.pairs

    def score_bytes(self, heads: int) -> float:
        """Bytes of one layer's scores in half precision."""
        return float(HALF * heads * self.pairs)

    def cache_bytes(self, depth: int, width: int) -> float:
        """Bytes of keys and values in half precision."""
        return 2.0 * HALF * depth * width * self.held


def full(grid: Grid) -> Pattern:
    """Every token attends to every token."""
    tokens = math.prod(grid)
    return Pattern("full attention", tokens, tokens**2, tokens)


def of_config(config: PatternConfig, grid: tuple[int, ...], depth: int) -> Pattern:
    """The pattern of a network's `attention:` section, as its modules compute it; the mean over its layers."""
    built, tokens = [config.build(grid, layer) for layer in range(depth)], math.prod(grid)
    pairs = sum(tokens**2 if layer is None else layer.pairs for layer in built) // depth
    return Pattern(f"this model's, {config.kind}", tokens, pairs, tokens)


def saved_bytes(pattern: TileWindows, width: int, heads: int, size: int = 4) -> int:
    """Bytes that one layer of windows keeps for its backward pass with the fused kernels: queries and outputs, the keys
    and values that are gathered for each tile, the logarithms of sums, and with key frames all keys and values again.

    size: bytes of a number.
    """
    vectors = (2 + 3 * bool(pattern.key_frames)) * pattern.length
    gathered = 2 * pattern.length * math.prod(pattern.window)
    return size * (width * (vectors + gathered) + heads * pattern.length)


def local(grid: Grid, window: int, neighbours: int, key_frames: int) -> Pattern:
    """A token attends to `window` x `window` tokens around it in its own frame and in `neighbours` frames before and
    after, and to all tokens of `key_frames` frames.

    Pairs: frames x rows x columns x (window^2 (1 + 2 neighbours) + key_frames x rows x columns), as in the middle of
    the video. Raises ConfigError when the video has fewer tokens or frames than that.
    """
    frames, rows, columns = grid
    if window > min(rows, columns):
        raise ConfigError(f"a window of {window} is larger than a frame of {rows}x{columns} tokens")
    if 1 + 2 * neighbours > frames or key_frames > frames:
        raise ConfigError(f"{1 + 2 * neighbours} neighbouring and {key_frames} key frames are more than {frames}")
    seen = window**2 * (1 + 2 * neighbours) + key_frames * rows * columns
    tokens = math.prod(grid)
    held = min(frames, 1 + 2 * neighbours + key_frames) * rows * columns
    text = f"local {window}x{window}, {neighbours} frames before and after, {key_frames} key frames"
    return Pattern(text, tokens, tokens * min(seen, tokens), held)


def chunks(grid: Grid, chunk: int, overlap: int) -> Pattern:
    """Full attention within chunks of `chunk` frames; each starts with the last `overlap` frames of the one before.

    Chunks: ceil((frames - overlap) / (chunk - overlap)); pairs: chunks x (chunk x rows x columns)^2. Raises ConfigError
    when the overlap leaves no new frame in a chunk.
    """
    frames, rows, columns = grid
    chunk = min(chunk, frames)
    if overlap >= chunk:
        raise ConfigError(f"an overlap of {overlap} frames leaves no new frame in a chunk of {chunk}")
    count = math.ceil((frames - overlap) / (chunk - overlap))
    inside = chunk * rows * columns
    return Pattern(
        f"{count} chunks of {chunk} frames, {overlap} overlapping", math.prod(grid), count * inside**2, inside
    )
