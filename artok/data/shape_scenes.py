"""Scenes of one or two coloured shapes: what they hold, how they are drawn by chance, and how they are painted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from artok.data.drawing import SHAPES, coverage
from artok.noise import Noise

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
SIZES = ("small", "large")
# Radii are shares of the side. At 32 pixels the points of the smallest star are visible, and two shapes never touch.
RADIUS_OF_NUMBER = ((0.13, 0.19), (0.13, 0.17))
RADIUS_OF_SIZE = ((0.125, 0.14), (0.165, 0.18))
CELL = 0.25  # distance of the three columns and rows of places
JITTER = 0.06  # below half of CELL by 2 pixels at side 32, so that places never overlap
GREY = (8, 64)  # of the background
BRIGHTNESS = (0.85, 1.0)
TWINS = 0.15  # share of the scenes of two shapes whose shapes are of one kind and colour
ARRANGEMENTS = ((0, 2), (3, 5), (6, 8), (0, 6), (1, 7), (2, 8))  # places of two shapes: left and right, or one above

KINDS = len(SHAPES) * len(COLOURS)


@dataclass
class Scene:
    """The contents of a batch of images of up to K shapes: indices into SHAPES, COLOURS and PLACES, (B, K) int64.

    number: (B,) shapes per image; the columns from there on mean nothing. Of two shapes the first is the left or upper
    one. centre: (B, K, 2) as (x, y), and radius: (B, K), shares of the side. size: (B, K) int64, an index into SIZES,
    or None where sizes are no part of the captions. grey: (B,) background and brightness (B, K) factor.
    """

    number: Tensor
    shape: Tensor
    colour: Tensor
    place: Tensor
    centre: Tensor
    radius: Tensor
    size: Tensor | None
    grey: Tensor
    brightness: Tensor


@cache
def combinations(held_out: int, seen: bool, number: int, twins: bool = False) -> Tensor:
    """Rows of the kinds, shape * 6 + colour, that an image of `number` shapes may show, (M, number) int64.

    held_out: how many of the 36 kinds are held out. They lie on diagonals of the table of shapes and colours, so each
    shape and each colour keeps most of its partners. The same share of the pairings of two kinds is held out, so that
    each kind keeps most of its partners there too. seen: those of training, which are of no held-out kind and no
    held-out pairing; else all others. twins: the pairs of one kind, else those of two.
    """
    shape, colour = torch.meshgrid(torch.arange(len(SHAPES)), torch.arange(len(COLOURS)), indexing="ij")
    rank = ((colour - shape) % len(COLOURS)) * len(SHAPES) + shape  # along the diagonals
    hidden = (rank < held_out).flatten()
    kinds = torch.arange(KINDS)
    if number == 1:
        return kinds[hidden != seen][:, None]
    first, second = torch.meshgrid(kinds, kinds, indexing="ij")
    apart = hidden[first] | hidden[second] | (((first + second) % KINDS < held_out) & (first != second))
    return torch.stack([first, second], dim=-1)[(apart != seen) & ((first == second) == twins)]


def draw_scene(noise: Noise, numbers: tuple[int, ...], sizes: bool, held_out: int, seen: bool) -> Scene:
    """Scenes by chance. numbers: of shapes per image, equally likely. For held_out and seen see `combinations`."""
    draws_8B, more_11B = noise.uniform(8).T, noise.uniform(11).T  # a scene of one shape needs the first eight alone
    number = _pick(torch.tensor(numbers)[:, None], more_11B[0])[:, 0]
    twin = more_11B[1] < TWINS
    if held_out or not seen:
        kind_BK = _pick(combinations(held_out, seen, 1), draws_8B[0])
    else:
        kind_BK = _index(draws_8B[:1].T, len(SHAPES)) * len(COLOURS) + _index(draws_8B[1:2].T, len(COLOURS))
    place_BK = _index(draws_8B[2:3].T, len(PLACES))
    if 2 in numbers:
        twins_B2, others_B2 = (_pick(combinations(held_out, seen, 2, twins), more_11B[2]) for twins in (True, False))
        two = (number == 2)[:, None]
        kind_BK = torch.where(two, torch.where(twin[:, None], twins_B2, others_B2), kind_BK)
        place_BK = torch.where(two, _pick(torch.tensor(ARRANGEMENTS), more_11B[3]), place_BK)

    most = max(numbers)
    jitter_BK2 = torch.stack([draws_8B[3:5].T, more_11B[4:6].T], dim=1)[:, :most]
    radius_BK, brightness_BK, size_BK = (
        torch.stack([first, second], dim=1)[:, :most]
        for first, second in (
            (draws_8B[5], more_11B[6]),
            (draws_8B[7], more_11B[7]),
            (more_11B[8], torch.where(twin, more_11B[8], more_11B[9])),
        )
    )
    cell_BK2 = torch.stack([place_BK % 3 - 1, place_BK // 3 - 1], dim=-1)
    size_BK = _index(size_BK, len(SIZES))
    ranges, chosen = (RADIUS_OF_SIZE, size_BK) if sizes else (RADIUS_OF_NUMBER, number[:, None].expand(-1, most) - 1)
    low, span = (torch.tensor(ends)[chosen] for ends in zip(*((a, b - a) for a, b in ranges), strict=True))
    return Scene(
        number=number,
        shape=kind_BK // len(COLOURS),
        colour=kind_BK % len(COLOURS),
        place=place_BK,
        centre=0.5 + CELL * cell_BK2 + JITTER * (2 * jitter_BK2 - 1),
        radius=low + span * radius_BK,
        size=size_BK if sizes else None,
        grey=GREY[0] + (GREY[1] - GREY[0]) * draws_8B[6],
        brightness=BRIGHTNESS[0] + (BRIGHTNESS[1] - BRIGHTNESS[0]) * brightness_BK,
    )


def _index(uniform: Tensor, count: int) -> Tensor:
    return (uniform * count).long()


def _pick(rows: Tensor, uniform_B: Tensor) -> Tensor:
    """One of the rows for each number in [0, 1)."""
    return rows[_index(uniform_B, len(rows))]


def draw(scene: Scene, side: int) -> Tensor:
    """Images (B, 3, side, side) uint8, anti-aliased."""
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    image = scene.grey[:, None, None, None].expand(-1, 3, side, side)
    for column in range(scene.shape.shape[1]):
        inside = coverage(scene.shape[:, column], scene.centre[:, column], scene.radius[:, column], side)
        inside = inside[:, None] * (column < scene.number)[:, None, None, None]
        paint = (palette[scene.colour[:, column]] * scene.brightness[:, column, None])[:, :, None, None]
        image = image + inside * (paint - image)
    return image.round().to(torch.uint8)
