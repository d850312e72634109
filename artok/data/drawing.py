"""Simple shapes as signed distances, drawn with smooth edges, and glyphs drawn between pixels.

A shape of radius 1 around the origin is a function of x (right) and y (down) that is negative inside. Near a straight
edge it is the distance to that edge, so a pixel's coverage is 0.5 minus the distance in pixels (Green 2007, "Improved
alpha-tested magnification for vector textures and special effects").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor


def circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.85


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Equilateral, point up, its centre of mass at the origin."""
    return torch.maximum(y, x.abs() * (math.sqrt(3) / 2) - y / 2) - 0.5


def cross(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.maximum(x.abs() - 1, y.abs() - 0.33)
    tall = torch.maximum(x.abs() - 0.33, y.abs() - 1)
    return torch.minimum(wide, tall)


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five points. By symmetry only half a point is computed, with one edge from tip to inner corner."""
    sector, valley = math.pi / 5, 0.42
    angle = torch.remainder(torch.atan2(x, -y) + sector, 2 * sector) - sector
    radius = torch.hypot(x, y)
    along, across = radius * angle.cos(), radius * angle.sin().abs()
    normal_x, normal_y = valley * math.sin(sector), 1 - valley * math.cos(sector)
    return ((along - 1) * normal_x + across * normal_y) / math.hypot(normal_x, normal_y)


def ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75).abs() - 0.25


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "cross": cross,
    "star": star,
    "ring": ring,
}


def coverage(shape: Tensor, centre: Tensor, radius: Tensor, side: int) -> Tensor:
    """The covered share of each pixel, (B, side, side) in [0, 1].

    shape: (B,) int64 index into SHAPES. centre: (B, 2) as (x, y), and radius: (B,), shares of the side.
    """
    axis = (torch.arange(side, device=centre.device) + 0.5) / side
    x = ((axis - centre[:, :1]) / radius[:, None])[:, None, :].expand(-1, side, -1)
    y = ((axis - centre[:, 1:]) / radius[:, None])[:, :, None].expand(-1, -1, side)
    inside = torch.zeros_like(x)
    for index, distance in enumerate(SHAPES.values()):
        rows = (shape == index).nonzero().flatten()
        if len(rows):
            pixels = distance(x[rows], y[rows]) * (radius[rows] * side)[:, None, None]
            inside[rows] = (0.5 - pixels).clamp(0, 1)
    return inside


def paste_glyphs(glyphs: Tensor, corners: Tensor, side: int) -> Tensor:
    """Pictures (B, side, side) of glyphs (B, g, g) float32 on black, whose upper left corners are at (B, 2) as (x, y)
    in pixels; between pixels by bilinear interpolation, which keeps mass and centre of mass."""
    offsets = torch.arange(glyphs.shape[-1])[:, None] - torch.arange(side)
    x_Bgs, y_Bgs = ((1 - (corners[:, axis, None, None] + offsets).abs()).clamp(min=0) for axis in (0, 1))
    return y_Bgs.transpose(1, 2) @ glyphs @ x_Bgs


@functools.cache
def _moments(name: str) -> tuple[float, float, float]:
    """Area and centre of mass of a shape of radius 1, summed on a fine grid."""
    side = 512
    axis = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2.4 - 1.2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (SHAPES[name](x, y) < 0).double()
    mass = inside.sum()
    return float(mass * (2.4 / side) ** 2), float((inside * x).sum() / mass), float((inside * y).sum() / mass)


def area(name: str) -> float:
    """The area of a shape of radius 1."""
    return _moments(name)[0]


def centroid(name: str) -> tuple[float, float]:
    """Centre of mass (x, y) of a shape of radius 1 around its origin."""
    return _moments(name)[1:]
