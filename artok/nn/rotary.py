"""Rotary position embedding over grids of any number of axes."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(grid: tuple[int, ...], head_width: int, base: float = 10000.0) -> Tensor:
    """cos and sin (N, head_width / 2, 2) for the positions of a grid, row-major.

    The pairs of a head are shared out to the axes in order (two axes: the first half turns with the row, the second
    with the column), each axis with frequencies base ** (-j / pairs), j = 0, 1, ... (Su et al. 2021, section 3.2.2;
    the two-axis form of LlamaGen, Sun et al. 2024).
    """
    pairs, axes = head_width // 2, len(grid)
    coordinates = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64) for side in grid]).reshape(-1, axes)
    angles = []
    for axis in range(axes):
        own = pairs // axes + (axis < pairs % axes)
        frequencies = base ** (-torch.arange(own, dtype=torch.float64) / own)
        angles.append(coordinates[:, axis, None] * frequencies)
    angle = torch.cat(angles, dim=1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the interleaved pairs (2i, 2i + 1) of x (B, N, ..., D) by the table's angles (N, D / 2, 2), in float32.

    A table (B, N, D / 2, 2) has the angles of each row. A pair turns as a complex number does: one product, where sines
    and cosines apart take six passes over memory.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turns = torch.view_as_complex(table).reshape(*table.shape[:-2], *[1] * (x.ndim - 3), -1)
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
