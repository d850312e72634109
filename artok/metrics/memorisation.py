"""Distance of samples to their nearest training image: far below that of held-out images, the model has memorised."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from artok.errors import ArtokError
from artok.metrics.base import HELD_OUT, Metric, MetricConfig, Rows, Seen, Subject, enough

NAME = "nearest training image"
ROWS = 2048  # images held as floats at once, on either side


class Config(MetricConfig):
    """Median pixel distance of samples to the nearest training image, beside that of held-out real images."""

    kind: Literal["memorisation"] = "memorisation"

    def build(self, subject: Subject) -> Memorisation:
        return Memorisation()

    @classmethod
    def tiny(cls) -> Config:
        return cls()


def nearest_distances(images: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance of each image to the nearest of the others, (B,) float64, of pixels in [-1, 1].

    images: (B, C, H, W) uint8, others: (T, C, H, W) uint8. The nearest is found in float32, its distance then computed
    exactly: two candidates that float32 confuses are equally far to seven digits.
    """
    if images.shape[1:] != others.shape[1:]:
        raise ArtokError(
            f"images of shape {tuple(images.shape[1:])} cannot be compared with training images "
            f"of {tuple(others.shape[1:])}"
        )
    images, others = images.flatten(1), others.flatten(1)
    nearest = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    least = torch.full((len(images),), torch.inf, device=images.device)
    for first in range(0, len(others), ROWS):
        pixels = others[first : first + ROWS].to(torch.float32) / 127.5 - 1
        square = pixels.square().sum(1)
        for start in range(0, len(images), ROWS):
            rows = slice(start, start + ROWS)
            values = images[rows].to(torch.float32) / 127.5 - 1
            found = (square - 2 * (values @ pixels.T)).min(1)
            nearest[rows] = torch.where(found.values < least[rows], found.indices + first, nearest[rows])
            least[rows] = torch.minimum(found.values, least[rows])
    parts = [
        (block.to(torch.float64) - others[index].to(torch.float64)).square().sum(1).sqrt() / 127.5
        for block, index in zip(images.split(ROWS), nearest.split(ROWS), strict=True)
    ]
    return torch.cat(parts)


class Memorisation(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "train_images"})
    optional: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self) -> None:
        self._rows = Rows("samples", "images", "train_images")

    @property
    def count(self) -> int:
        return self._rows.count("samples")

    def update(self, seen: Seen) -> None:
        self._rows.update(seen)

    def compute(self) -> dict[str, float]:
        counts = {"samples": self.count, "training": self._rows.count("train_images")}
        enough(f"the distance to the {NAME}", counts, 1)
        train = self._rows.joined("train_images")
        values = {NAME: float(nearest_distances(self._rows.joined("samples"), train).quantile(0.5))}
        if self._rows.count("images"):
            values[NAME + HELD_OUT] = float(nearest_distances(self._rows.joined("images"), train).quantile(0.5))
        return values
