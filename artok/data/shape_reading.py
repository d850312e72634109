"""Reads what an image of one or two shapes shows, by drawing the explanation that comes nearest; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from artok.data.drawing import SHAPES, area, centroid, coverage
from artok.data.shape_scenes import CELL, COLOURS, RADIUS_OF_SIZE
from artok.images import from_uint8

CLEAR = 0.8  # least share of an image's variation that its reading must explain
TWO = 0.88  # of what one shape leaves unexplained, two must leave less: halves of one leave .98, two with noise .8
LEAST = 0.5 * RADIUS_OF_SIZE[0][0] ** 2  # of a second shape's squared radius: less is noise, or a part of the first
BETWEEN = (RADIUS_OF_SIZE[0][1] + RADIUS_OF_SIZE[1][0]) / 2  # radius that tells small from large


@dataclass
class ReadBack:
    """What images show: indices into SHAPES, COLOURS, PLACES and SIZES, (B, 2) int64.

    number: (B,) shapes per image, 1 or 2; of one shape both columns hold the same. Of two the first is the left or
    upper one. centre: (B, 2, 2) as (x, y), and radius: (B, 2), shares of the side. fit: (B,) share of the image's
    variation that the reading explains, about 1 for a clean image and low for an image without a shape, or with more
    than two. `clear` requires 0.8.
    """

    number: Tensor
    shape: Tensor
    colour: Tensor
    centre: Tensor
    radius: Tensor
    fit: Tensor

    @property
    def place(self) -> Tensor:
        column_row = ((self.centre - 0.5) / CELL).round().clamp(-1, 1).long() + 1
        return column_row[..., 1] * 3 + column_row[..., 0]

    @property
    def size(self) -> Tensor:
        return (self.radius > BETWEEN).long()

    @property
    def clear(self) -> Tensor:
        """(B,) bool: the image shows one or two of the shapes."""
        return self.fit >= CLEAR

    def labels(self, classes: Literal["shape", "shape_colour"]) -> Tensor:
        """Labels (B,) int64 under these classes."""
        return self.shape[:, 0] * len(COLOURS) + self.colour[:, 0] if classes == "shape_colour" else self.shape[:, 0]


@dataclass
class _One:
    """The best drawing of one shape in each of (B,) differences. error: what it leaves, (B,) sum of squares."""

    shape: Tensor
    colour: Tensor
    centre: Tensor
    radius: Tensor
    error: Tensor


def read_back(images: Tensor) -> ReadBack:
    """Find the shapes in images (B, 3, H, H), uint8 or in [-1, 1]; exact on clean ones from 32 pixels.

    The background is the median of the border. An image is explained as one shape; as a left and a right one; and as
    an upper and a lower one, divided where there is least. The explanation that leaves least is taken.
    """
    pixels = (from_uint8(images) if images.dtype == torch.uint8 else images).float()
    border = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], dim=-1)
    ground = border.median(dim=-1).values
    difference = pixels - ground[..., None, None]
    whole = _explain(difference, ground)
    across, along = _halves(difference), _halves(difference.mT).transpose(-1, -2)
    pairs = [
        tuple(_explain(difference * part, ground) for part in (half[:, None], ~half[:, None]))
        for half in (across, along)
    ]
    errors = [whole.error]
    for first, second in pairs:
        small = torch.minimum(first.radius, second.radius).square() < LEAST
        errors.append(torch.where(small, torch.inf, (first.error + second.error) / TWO))
    best = torch.stack(errors).argmin(0)
    left = torch.stack(errors).min(0).values * torch.where(best > 0, TWO, 1.0)
    total = difference.square().flatten(1).sum(-1)

    def chosen(field: str) -> Tensor:
        found = [torch.stack([getattr(part, field) for part in each], 1) for each in ((whole, whole), *pairs)]
        return torch.stack(found)[best, torch.arange(len(best), device=best.device)]

    return ReadBack(
        number=1 + (best > 0).long(),
        shape=chosen("shape"),
        colour=chosen("colour"),
        centre=chosen("centre"),
        radius=chosen("radius"),
        fit=(total - left) / total.clamp_min(1),  # 0 for an empty image
    )


def _halves(difference: Tensor) -> Tensor:
    """(B, H, W) bool: what is left of the column, of the middle half of them, that differs least from the background.

    Of equal columns the one nearest to the middle is taken.
    """
    side = difference.shape[-1]
    strength = difference.square().sum(dim=(1, 2))
    columns = torch.arange(side, device=difference.device)
    off = (columns + 0.5 - side / 2).abs()
    strength = strength + strength.sum(1, keepdim=True) * 1e-3 * off / side
    strength = strength.masked_fill(off > side / 4, torch.inf)
    return (columns <= strength.argmin(1, keepdim=True))[:, None].expand(-1, side, -1)


def _explain(difference: Tensor, ground: Tensor) -> _One:
    """The best drawing of one shape.

    The colour is that of the largest difference. Each shape is drawn with the area and centroid of the difference (its
    moments); the closest drawing is chosen.
    """
    paint_B3 = _paint(difference)
    energy = paint_B3.square().sum(1).clamp_min(1e-8)
    opacity = torch.einsum("bchw,bc->bhw", difference, paint_B3) / energy[:, None, None]
    drawings, centres, radii = _candidates(opacity * _near(opacity))
    painted = drawings[:, :, None] * paint_B3[:, None, :, None, None]
    error_BS = (difference[:, None] - painted).square().flatten(2).sum(-1)
    best = error_BS.argmin(1)
    rows = torch.arange(len(best), device=best.device)
    return _One(best, _colour(paint_B3, ground), centres[rows, best], radii[rows, best], error_BS[rows, best])


def _near(opacity: Tensor) -> Tensor:
    """(B, H, W) bool: the shape and its surroundings. Noise elsewhere would change the moments."""
    smooth = functional.avg_pool2d(opacity[:, None], 3, stride=1, padding=1)
    return functional.max_pool2d((smooth > 0.3).float(), 3, stride=1, padding=1)[:, 0] > 0


def _paint(difference: Tensor) -> Tensor:
    """(B, 3): the mean difference from the background over the pixels that differ most, which lie fully inside."""
    strength = difference.square().sum(1).flatten(1).sqrt()
    solid = (strength >= 0.8 * strength.topk(8, dim=1).values[:, -1:]).float()
    return torch.einsum("bcn,bn->bc", difference.flatten(2), solid) / solid.sum(1, keepdim=True)


def _colour(paint_B3: Tensor, ground: Tensor) -> Tensor:
    """(B,) index of the colour whose direction is nearest, independent of brightness."""
    seen = paint_B3 + ground + 1
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=seen.device)
    seen, palette = seen / seen.norm(dim=1, keepdim=True).clamp_min(1e-8), palette / palette.norm(dim=1, keepdim=True)
    return (seen @ palette.T).argmax(1)


def _candidates(opacity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw each shape with the area and centroid of an opacity (B, H, W).

    Drawings (B, S, H, W), centres (B, S, 2) and radii (B, S).
    """
    side = opacity.shape[-1]
    axis = (torch.arange(side, device=opacity.device) + 0.5) / side
    mass = opacity.flatten(1).sum(1).clamp_min(1e-6)
    middle = torch.stack([opacity.sum(1) @ axis, opacity.sum(2) @ axis], dim=1) / mass[:, None]
    drawings, centres, radii = [], [], []
    for index, name in enumerate(SHAPES):
        radius = (mass / area(name)).sqrt() / side
        centre = middle - radius[:, None] * torch.tensor(centroid(name), device=opacity.device)
        shape = torch.full((len(opacity),), index, device=opacity.device)
        drawings.append(coverage(shape, centre, radius, side))
        centres.append(centre)
        radii.append(radius)
    return torch.stack(drawings, dim=1), torch.stack(centres, dim=1), torch.stack(radii, dim=1)
