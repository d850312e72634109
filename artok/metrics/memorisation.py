"""Whether samples are memorised training images: how near they lie to those, and to held-out images.

The distance alone misleads where samples are smoother than real images, as these lie nearer to any image at all. What
is told from it is therefore which images are nearest: those of training attract copies, and nothing else, more than
held-out ones do (Meehan, Chaudhuri and Dasgupta 2020, arXiv 2004.05675, compare the same two distances).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from artok.errors import ArtokError
from artok.metrics.base import HELD_OUT, EvalBatch, Metric, MetricConfig, MetricContext, Rows, enough
from artok.metrics.quantity import Quantity

DISTANCE, COPIES = "nearest_train_distance", "memorised_share"
ROWS = 2048  # images held as floats at once, on either side


class Config(MetricConfig):
    """Median pixel distance of samples to the nearest training image, beside that of held-out real images; and the
    share of samples that are memorised, as far as the nearest images tell."""

    kind: Literal["memorisation"] = "memorisation"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            DISTANCE,
            "nearest training image",
            "",
            "at the floor",
            "Memorisation",
            "Median pixel distance to the nearest training image. Blurred images lie nearer to any image.",
        ),
        Quantity(
            COPIES,
            "memorised",
            "",
            "lower",
            "Memorisation",
            "Share of samples that are copies: how often a training image is nearest. The floor is the most by chance.",
        ),
    )

    def build(self, subject: MetricContext) -> Memorisation:
        return Memorisation()

    @classmethod
    def tiny(cls) -> Config:
        return cls()


def nearest_distances(images: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance of each image to the nearest of the others, as in `nearest`."""
    return nearest(images, others)[0]


def nearest(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance (B,) float64 of each image to the nearest of the others, pixels in [-1, 1], and which it is.

    images: (B, C, H, W) uint8, others: (T, C, H, W) uint8. The nearest is found in float32, its distance then computed
    exactly: two candidates that float32 confuses are equally far to seven digits.
    """
    if images.shape[1:] != others.shape[1:]:
        raise ArtokError(
            f"images of shape {tuple(images.shape[1:])} cannot be compared with training images "
            f"of {tuple(others.shape[1:])}"
        )
    images, others = images.flatten(1), others.flatten(1)
    which = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    least = torch.full((len(images),), torch.inf, device=images.device)
    for first in range(0, len(others), ROWS):
        pixels = others[first : first + ROWS].to(torch.float32) / 127.5 - 1
        square = pixels.square().sum(1)
        for start in range(0, len(images), ROWS):
            rows = slice(start, start + ROWS)
            values = images[rows].to(torch.float32) / 127.5 - 1
            found = (square - 2 * (values @ pixels.T)).min(1)
            which[rows] = torch.where(found.values < least[rows], found.indices + first, which[rows])
            least[rows] = torch.minimum(found.values, least[rows])
    parts = [
        (block.to(torch.float64) - others[index].to(torch.float64)).square().sum(1).sqrt() / 127.5
        for block, index in zip(images.split(ROWS), which.split(ROWS), strict=True)
    ]
    return torch.cat(parts), which


class Memorisation(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "train_images"})
    optional: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self) -> None:
        self._rows = Rows("samples", "images", "train_images")

    @property
    def count(self) -> int:
        return self._rows.count("samples")

    def update(self, seen: EvalBatch) -> None:
        self._rows.update(seen)

    def compute(self) -> dict[str, float]:
        counts = {"samples": self.count, "training": self._rows.count("train_images")}
        enough("the distance to the nearest training image", counts, 1)
        train, samples = self._rows.joined("train_images"), self._rows.joined("samples")
        to_train = nearest(samples, train)
        values = {DISTANCE: float(to_train[0].quantile(0.5))}
        if self._rows.count("images"):
            held_out = self._rows.joined("images")
            few = torch.linspace(0, len(held_out) - 1, min(len(held_out), len(samples))).long()  # all cost far more
            values[DISTANCE + HELD_OUT] = float(nearest_distances(held_out[few], train).quantile(0.5))
            share, chance = copies(to_train, nearest(samples, held_out), len(train), len(held_out))
            values |= {COPIES: share, COPIES + HELD_OUT: chance}
        return values


def copies(
    to_train: tuple[Tensor, Tensor], to_held_out: tuple[Tensor, Tensor], train: int, held_out: int
) -> tuple[float, float]:
    """The share of samples that are copies, from the nearest (M,) of so many images of either kind; and the most that
    chance shows of new images (two deviations).

    A new image has its nearest among the held-out ones as often as these are among all, a copy never. Chance has more
    room where many samples share one nearest image: it falls to one side with all of them.
    """
    fresh = to_held_out[0] < to_train[0]
    which = torch.where(fresh, to_held_out[1] + train, to_train[1])
    new = float(fresh.double().mean()) * (train + held_out) / held_out
    together = float(which.bincount().double().square().sum()) / len(which) ** 2
    return max(0.0, 1 - new), min(1.0, 2 * (train / held_out * together) ** 0.5)
