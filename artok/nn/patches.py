"""Squares of neighbouring vectors as one longer vector, and back."""

from __future__ import annotations

from torch import Tensor


def split_patches(vectors: Tensor, grid: tuple[int, ...], side: int) -> Tensor:
    """(B, N, D) of a grid (..., h, w) to (B, N / side^2, D side^2), patches row-major over the last two axes.

    The numbers of a patch are ordered by channel, then row, then column, as in MAR and in a convolution's weight.
    """
    if side == 1:
        return vectors
    frames, rows, columns = _sides(vectors.shape[1], grid, side)
    x = vectors.unflatten(1, (frames, rows, side, columns, side))
    return x.permute(0, 1, 2, 4, 6, 3, 5).flatten(4).flatten(1, 3)


def merge_patches(patches: Tensor, grid: tuple[int, ...], side: int) -> Tensor:
    """The inverse of `split_patches`: (B, N / side^2, D side^2) to (B, N, D) of a grid (..., h, w)."""
    if side == 1:
        return patches
    frames, rows, columns = _sides(patches.shape[1] * side**2, grid, side)
    x = patches.unflatten(2, (-1, side, side)).unflatten(1, (frames, rows, columns))
    return x.permute(0, 1, 2, 5, 3, 6, 4).flatten(1, 5)


def patch_grid(grid: tuple[int, ...], side: int) -> tuple[int, ...]:
    """The grid of the patches."""
    return grid if side == 1 else (*grid[:-2], grid[-2] // side, grid[-1] // side)


def divides(grid: tuple[int, ...], side: int) -> bool:
    """Whether patches of that side tile the grid."""
    return side == 1 or (len(grid) >= 2 and grid[-1] % side == 0 and grid[-2] % side == 0)


def _sides(length: int, grid: tuple[int, ...], side: int) -> tuple[int, int, int]:
    rows, columns = grid[-2], grid[-1]
    return length // (rows * columns), rows // side, columns // side
