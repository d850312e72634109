"""A random sample of the points of a step, the same however its images are split among parts and processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from artok.noise import Noise
from artok.quantizers.distributed import gather_over_processes

LARGEST = 2**62  # keys are below
NONE = 2**63 - 1  # the key of an empty place


class Candidates(nn.Module):
    """For each of S rows, `count` points of length D: those with the smallest of random keys, which belong to images.

    points: (S, count, D). keys: (S, count) int64, ascending.
    """

    points: Tensor
    keys: Tensor

    def __init__(self, rows: int, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("points", torch.zeros(rows, count, width), persistent=False)
        self.register_buffer("keys", torch.full((rows, count), NONE), persistent=False)

    def collect(self, row: int, points: Tensor, noise: Noise) -> None:
        """Add the points (B, N, D) of a part of a step. noise: of its images."""
        keys = noise.integers(LARGEST, points.shape[1]).flatten()
        self._keep(row, torch.cat([self.keys[row], keys]), torch.cat([self.points[row], points.flatten(0, 1)]))

    def _keep(self, row: int, keys: Tensor, points: Tensor) -> None:
        smallest, places = keys.topk(self.count, largest=False)
        self.keys[row] = smallest
        self.points[row] = points[places]

    def take(self) -> tuple[Tensor, Tensor]:
        """The sample of all processes, (S, count, D), and which of it are points at all, (S, count) bool; then empty.

        Points that are none come last.
        """
        keys, points = gather_over_processes(self.keys, 1), gather_over_processes(self.points, 1)
        for row in range(len(keys)):
            self._keep(row, keys[row], points[row])
        taken = self.points.clone(), self.keys != NONE
        self.keys.fill_(NONE)
        return taken
