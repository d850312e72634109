"""Reads many images of a split into memory, the same ones at every call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from artok.data.base import Split
from artok.data.order import choose_rows
from artok.data.transforms import plain
from artok.images import to_uint8

MOST_IMAGES, MOST_BYTES = 50_000, 2**30  # limits per split


def read_into_memory(split: Split, size: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, C, ..., size, size) uint8 and labels (N,) of a split, without augmentation.

    rows: ascending indices; default all, or a random subset within 50,000 images and 1 GiB.
    """
    if rows is None:
        rows = choose_rows(len(split), min(MOST_IMAGES, MOST_BYTES // (math.prod(split.shape[:-2]) * size**2)))
    parts = [split.read(part.tolist()) for part in rows.split(256)]
    images = [to_uint8(plain(part.images, size)) for part in parts]
    return torch.cat(images), torch.cat([part.labels for part in parts])
