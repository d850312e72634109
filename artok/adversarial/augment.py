"""Differentiable augmentation of real and generated images before a discriminator sees them (Zhao et al. 2020).

It keeps a discriminator from memorising little data. It does not leak into what is generated, because the gradient
passes through it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from artok.noise import Noise

Augmentation = Literal["color", "translation", "cutout"]

LARGEST_SHIFT = 1 / 8  # of the side
HOLE = 1 / 2  # of the side


def augment(images: Tensor, augmentations: tuple[Augmentation, ...], noise: Noise) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], each changed by its own random numbers, which do not depend on what is on."""
    draws_B7 = noise.uniform(7)
    if "color" in augmentations:
        images = change_color(images, draws_B7[:, 0:3])
    if "translation" in augmentations:
        images = translate(images, draws_B7[:, 3:5])
    if "cutout" in augmentations:
        images = cut_out(images, draws_B7[:, 5:7])
    return images


def change_color(images: Tensor, draws_B3: Tensor) -> Tensor:
    """Brightness +- 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    brightness, saturation, contrast = draws_B3.to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translate(images: Tensor, draws_B2: Tensor) -> Tensor:
    """Moved by up to an eighth of the sides, by whole pixels; what comes in is 0."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - draw_offsets(draws_B2[:, :1], height)
    columns = torch.arange(width, device=images.device) - draw_offsets(draws_B2[:, 1:], width)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view_as(images) * inside


def draw_offsets(draws_B1: Tensor, side: int) -> Tensor:
    """Whole pixels, (B, 1) int64, from -side / 8 to side / 8."""
    most = int(side * LARGEST_SHIFT + 0.5)
    return (draws_B1 * (2 * most + 1)).long() - most


def cut_out(images: Tensor, draws_B2: Tensor) -> Tensor:
    """A rectangle of half the sides around a random place set to 0; it may reach over the border."""
    places = []
    for axis, side in enumerate(images.shape[2:]):
        centre = (draws_B2[:, axis : axis + 1] * (side + 1)).long()
        index = torch.arange(side, device=images.device)
        first = centre - int(side * HOLE + 0.5) // 2
        places.append((index >= first) & (index < first + int(side * HOLE + 0.5)))
    hole = places[0][:, None, :, None] & places[1][:, None, None, :]
    return images * ~hole
