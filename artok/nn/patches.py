"""Squares of neighbouring vectors as one longer vector, and back."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def split_patches(vectors: Tensor, grid: tuple[int, ...], side: int) -> Tensor:
    """(B, N, D) of a grid (..., h, w) to (B, N / side^2, D side^2), patches row-major over the last two axes.

    The numbers of a patch are ordered by channel, then row, then column, as in MAR and in a convolution's weight.
    """
    if side == 1:
        return vectors
    rows, columns = grid[-2] // side, grid[-1] // side
    return rearrange(vectors, "b (f h p w q) d -> b (f h w) (d p q)", h=rows, w=columns, p=side, q=side)


def merge_patches(patches: Tensor, grid: tuple[int, ...], side: int) -> Tensor:
    """The inverse of `split_patches`: (B, N / side^2, D side^2) to (B, N, D) of a grid (..., h, w)."""
    if side == 1:
        return patches
    rows, columns = grid[-2] // side, grid[-1] // side
    return rearrange(patches, "b (f h w) (d p q) -> b (f h p w q) d", h=rows, w=columns, p=side, q=side)


def patch_grid(grid: tuple[int, ...], side: int) -> tuple[int, ...]:
    """The grid of the patches."""
    return grid if side == 1 else (*grid[:-2], grid[-2] // side, grid[-1] // side)


def divides(grid: tuple[int, ...], side: int) -> bool:
    """Whether patches of that side tile the grid."""
    return side == 1 or (len(grid) >= 2 and grid[-1] % side == 0 and grid[-2] % side == 0)
