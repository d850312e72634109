"""The order of training images, a pure function of (seed, images seen)."""

from __future__ import annotations

import torch
from torch import Tensor

from artok.errors import DataError
from artok.noise import Noise, fold


class Order:
    """Endless passes over `length` images. Each pass is a new random permutation."""

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed = length, fold("order", seed)
        self._passes: dict[int, Tensor] = {}

    def __call__(self, positions: Tensor) -> Tensor:
        """Indices (B,) int64 of positions (B,): position p is place p % length of pass p // length."""
        passes, places = positions // self._length, positions % self._length
        indices = torch.empty_like(positions)
        for number in passes.unique().tolist():
            rows = passes == number
            indices[rows] = self._permutation(number)[places[rows]]
        return indices

    def _permutation(self, number: int) -> Tensor:
        if number not in self._passes:
            if len(self._passes) > 1:
                self._passes.clear()
            self._passes[number] = Noise(self._seed, torch.tensor([number])).permutation(self._length)[0]
        return self._passes[number]


def choose_rows(count: int, most: int | None = None) -> Tensor:
    """Ascending indices below `count`: all, or a fixed random subset of `most`.

    What is measured on a part of a split is measured on such a subset: the first images of a sorted folder or table
    would be of its first classes.
    """
    if most is None or most >= count:
        return torch.arange(count)
    return Noise(0, torch.zeros(1, dtype=torch.int64)).permutation(count)[0, :most].sort().values


def rank_positions(step: int, batch: int, start: int, rank: int, world: int) -> Tensor:
    """Positions (B / world,) int64 of this process's contiguous share of global batch `step` after `start` images."""
    rows = batch // world
    first = start + step * batch + rank * rows
    return torch.arange(first, first + rows)


def check_shares(batch: int, world: int) -> None:
    """Raise a DataError unless the processes can share a global batch equally."""
    if batch < 1 or batch % world:
        raise DataError(f"a global batch of {batch} cannot be shared equally by {world} processes")
