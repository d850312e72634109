"""Procedural coloured shapes with class and caption, and a classifier for them that needs no training.

Image i of a split is a pure function of (seed, split, i). `read_back` finds the shape, colour and place that an image
shows, so generated images can be checked against their label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from artok.data.base import DataConfig, Examples, Split, SplitName
from artok.data.drawing import SHAPES, area, centroid, coverage
from artok.data.fingerprints import digest_parts
from artok.images import from_uint8
from artok.noise import Noise, Seed, fold

COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 180, 70),
    "blue": (60, 90, 230),
    "yellow": (240, 215, 50),
    "purple": (170, 60, 200),
    "turquoise": (60, 205, 215),
}
PLACES = (
    "at the top left", "at the top", "at the top right",
    "at the left", "in the centre", "at the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
RADIUS = (0.13, 0.19)  # shares of the side; at 32 pixels the points of the smallest star are visible
CELL = 0.25  # distance of the three columns and rows of places
JITTER = 0.06  # below half of CELL by 2 pixels at side 32, so that places never overlap
GREY = (8, 64)  # of the background
BRIGHTNESS = (0.85, 1.0)


class Config(DataConfig):
    """`data: {kind: shapes}`: one shape per image, always in colour.

    classes: the meaning of a label. train, test: nominal numbers of images; any index can be drawn.
    """

    kind: Literal["shapes"] = "shapes"
    size: int = Field(32, ge=16, description="at least 16 pixels are needed to distinguish the shapes")
    channels: Literal[1, 3] = 3
    classes: Literal["shape", "shape_colour"] = "shape"
    train: int = Field(10_000, gt=0)
    test: int = Field(1_000, gt=0)
    seed: Seed = 0

    @field_validator("channels")
    @classmethod
    def _check_channels(cls, channels: int) -> int:
        if channels != 3:
            raise ValueError("must be 3, since the shapes differ in colour too")
        return channels

    def open(self, split: SplitName) -> ShapesSplit:
        return ShapesSplit(self.seed, split, self.train if split == "train" else self.test, self.side, self.classes)

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        return cls(size=16, train=40, test=20)


@dataclass
class Scene:
    """The contents of a batch of images: indices into SHAPES, COLOURS and PLACES, (B,) int64.

    centre: (B, 2) as (x, y), and radius: (B,), shares of the side. grey: (B,) background and brightness (B,) factor.
    """

    shape: Tensor
    colour: Tensor
    place: Tensor
    centre: Tensor
    radius: Tensor
    grey: Tensor
    brightness: Tensor

    def captions(self) -> list[str]:
        """A caption per image, such as "a red circle at the top left"."""
        shapes, colours = list(SHAPES), list(COLOURS)
        rows = zip(self.shape.tolist(), self.colour.tolist(), self.place.tolist(), strict=True)
        return [f"a {colours[colour]} {shapes[shape]} {PLACES[place]}" for shape, colour, place in rows]


class ShapesSplit(Split):
    captioned = True

    def __init__(
        self, seed: int, split: SplitName, count: int, side: int, classes: Literal["shape", "shape_colour"]
    ) -> None:
        self._seed, self._count, self._by_colour = fold("shapes", seed, split), count, classes == "shape_colour"
        self.shape = (3, side, side)
        self.classes = tuple(SHAPES)
        if self._by_colour:
            self.classes = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
        self.fingerprint = digest_parts("shapes 1", seed, split, count, side, classes)
        self.skipped = {}
        self.enlarged = set()

        self.labels = self._label(self.scene(torch.arange(count)))

    def __len__(self) -> int:
        return self._count

    def scene(self, indices: Sequence[int] | Tensor) -> Scene:
        """The contents of the images at these indices."""
        draws_8B = Noise(self._seed, torch.as_tensor(indices, dtype=torch.int64)).uniform(8).T
        counts = (len(SHAPES), len(COLOURS), len(PLACES))
        shape, colour, place = ((draw * count).long() for draw, count in zip(draws_8B, counts, strict=False))
        cell_B2 = torch.stack([place % 3 - 1, place // 3 - 1], dim=1)
        return Scene(
            shape=shape,
            colour=colour,
            place=place,
            centre=0.5 + CELL * cell_B2 + JITTER * (2 * draws_8B[3:5].T - 1),
            radius=_between(RADIUS, draws_8B[5]),
            grey=_between(GREY, draws_8B[6]),
            brightness=_between(BRIGHTNESS, draws_8B[7]),
        )

    def read(self, indices: Sequence[int]) -> Examples:
        scene = self.scene(indices)
        return Examples(draw(scene, self.shape[1]), self._label(scene), [(text,) for text in scene.captions()])

    def _label(self, scene: Scene) -> Tensor:
        return scene.shape * len(COLOURS) + scene.colour if self._by_colour else scene.shape


def _between(ends: tuple[float, float], uniform: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * uniform


def draw(scene: Scene, side: int) -> Tensor:
    """Images (B, 3, side, side) uint8, anti-aliased."""
    inside = coverage(scene.shape, scene.centre, scene.radius, side)[:, None]
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    paint = (palette[scene.colour] * scene.brightness[:, None])[:, :, None, None]
    ground = scene.grey[:, None, None, None]
    return (ground + inside * (paint - ground)).round().to(torch.uint8)


@dataclass
class ReadBack:
    """Classified images: indices into SHAPES, COLOURS and PLACES, (B,) int64.

    fit: (B,) share of the image's variation that the best drawing explains, about 1 for a clean image and low for an
    image without a shape. `clear` requires 0.8.
    """

    shape: Tensor
    colour: Tensor
    place: Tensor
    fit: Tensor

    @property
    def clear(self) -> Tensor:
        """(B,) bool: the image shows one of the shapes."""
        return self.fit >= 0.8

    def labels(self, classes: Literal["shape", "shape_colour"]) -> Tensor:
        """Labels (B,) int64 under these classes."""
        return self.shape * len(COLOURS) + self.colour if classes == "shape_colour" else self.shape


def read_back(images: Tensor) -> ReadBack:
    """Find shape, colour and place in images (B, 3, H, H), uint8 or in [-1, 1]; exact on clean ones from 32 pixels.

    The background is the median of the border, the colour that of the largest difference from it. Each shape is drawn
    with the area and centroid of the difference (its moments); the closest drawing is chosen.
    """
    pixels = (from_uint8(images) if images.dtype == torch.uint8 else images).float()
    border = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], dim=-1)
    difference = pixels - border.median(dim=-1).values[..., None, None]
    paint_B3 = _paint(difference)
    energy = paint_B3.square().sum(1).clamp_min(1e-8)
    opacity = torch.einsum("bchw,bc->bhw", difference, paint_B3) / energy[:, None, None]
    drawings, centres = _candidates(opacity * _near(opacity))
    painted = drawings[:, :, None] * paint_B3[:, None, :, None, None]
    error_BS = (difference[:, None] - painted).square().flatten(2).sum(-1)
    best = error_BS.argmin(1)
    rows = torch.arange(len(best), device=best.device)
    column_row = ((centres[rows, best] - 0.5) / CELL).round().clamp(-1, 1).long() + 1
    total = difference.square().flatten(1).sum(-1)
    colour = _colour(paint_B3, pixels, border)
    fit = (total - error_BS[rows, best]) / total.clamp_min(1)  # 0 for an empty image
    return ReadBack(best, colour, column_row[:, 1] * 3 + column_row[:, 0], fit)


def _near(opacity: Tensor) -> Tensor:
    """(B, H, W) bool: the shape and its surroundings. Noise elsewhere would change the moments."""
    smooth = functional.avg_pool2d(opacity[:, None], 3, stride=1, padding=1)
    return functional.max_pool2d((smooth > 0.3).float(), 3, stride=1, padding=1)[:, 0] > 0


def _paint(difference: Tensor) -> Tensor:
    """(B, 3): the mean difference from the background over the pixels that differ most, which lie fully inside."""
    strength = difference.square().sum(1).flatten(1).sqrt()
    solid = (strength >= 0.8 * strength.topk(8, dim=1).values[:, -1:]).float()
    return torch.einsum("bcn,bn->bc", difference.flatten(2), solid) / solid.sum(1, keepdim=True)


def _colour(paint_B3: Tensor, pixels: Tensor, border: Tensor) -> Tensor:
    """(B,) index of the colour whose direction is nearest, independent of brightness."""
    seen = paint_B3 + border.median(dim=-1).values + 1
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=pixels.device)
    seen, palette = seen / seen.norm(dim=1, keepdim=True).clamp_min(1e-8), palette / palette.norm(dim=1, keepdim=True)
    return (seen @ palette.T).argmax(1)


def _candidates(opacity: Tensor) -> tuple[Tensor, Tensor]:
    """Draw each shape with the area and centroid of an opacity (B, H, W): (B, S, H, W), and centres (B, S, 2)."""
    side = opacity.shape[-1]
    axis = (torch.arange(side, device=opacity.device) + 0.5) / side
    mass = opacity.flatten(1).sum(1).clamp_min(1e-6)
    middle = torch.stack([opacity.sum(1) @ axis, opacity.sum(2) @ axis], dim=1) / mass[:, None]
    drawings, centres = [], []
    for index, name in enumerate(SHAPES):
        radius = (mass / area(name)).sqrt() / side
        centre = middle - radius[:, None] * torch.tensor(centroid(name), device=opacity.device)
        shape = torch.full((len(opacity),), index, device=opacity.device)
        drawings.append(coverage(shape, centre, radius, side))
        centres.append(centre)
    return torch.stack(drawings, dim=1), torch.stack(centres, dim=1)
