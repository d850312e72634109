"""Resampling of grids with one, two or three axes: down by area, up smoothly."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SMOOTH = {1: "linear", 2: "bicubic", 3: "trilinear"}  # torch has bicubic for two axes only


def shrink(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, D, *larger) to (B, D, *grid): each place becomes the mean of the area it covers."""
    return x if tuple(x.shape[2:]) == grid else F.interpolate(x, size=grid, mode="area")


def enlarge(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, D, *smaller) to (B, D, *grid), smoothly; corners are not aligned."""
    return x if tuple(x.shape[2:]) == grid else F.interpolate(x, size=grid, mode=SMOOTH[len(grid)])
