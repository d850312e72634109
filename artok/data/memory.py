"""A split, or a fair part of it, in memory: for what looks at all images at once."""

from __future__ import annotations

import torch
from torch import Tensor

from artok.data.base import DataConfig, Split
from artok.data.transforms import plain
from artok.images import to_uint8
from artok.noise import Noise

MOST_IMAGES, MOST_BYTES = 50_000, 2**30


def held_in_memory(split: Split, data: DataConfig) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,) of a split as a model sees them without augmentation.

    All of them, or a random part of what would take more than 1 GiB.
    """
    most = min(MOST_IMAGES, MOST_BYTES // (data.channels * data.size**2))
    parts = [split.read(rows.tolist()) for rows in some(len(split), most).split(256)]
    images = [to_uint8(plain(part.images, data.size)) for part in parts]
    return torch.cat(images), torch.cat([part.labels for part in parts])


def some(count: int, most: int) -> Tensor:
    """Indices below `count`, ascending: all, or a random `most` of them, always the same ones."""
    if most >= count:
        return torch.arange(count)
    return Noise(0, torch.zeros(1, dtype=torch.int64)).permutation(count)[0, :most].sort().values
