"""Whether samples are memorised training images: how near they lie to those, and to held-out images.

The distance alone misleads where samples are smoother than real images, as these lie nearer to any image at all. What
is told from it is therefore which images are nearest: those of training attract copies, and nothing else, more than
held-out ones do (Meehan, Chaudhuri and Dasgupta 2020, arXiv 2004.05675, compare the same two distances).

Every training image that is shown is searched, and none is kept. Where only a part of them is shown, copies of the
others look like new images, so the share that is found is divided by the part that was searched.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from artok.errors import ArtokError
from artok.metrics.base import HELD_OUT, EvalBatch, Metric, MetricConfig, MetricContext, Rows, enough
from artok.metrics.quantity import Quantity

DISTANCE, COPIES, SEARCHED = "nearest_train_distance", "memorised_share", "train_searched_share"
ROWS = 2048  # images held as floats at once, on either side
SIDE = 32  # pixels; larger images are reduced to this, so that 50,000 samples fit in memory whatever their size


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
        Quantity(
            SEARCHED,
            "training images searched",
            "",
            "",
            "Memorisation",
            "Share of the training images that copies were looked for among, where that was not all of them.",
        ),
    )

    def build(self, subject: MetricContext) -> Memorisation:
        return Memorisation(subject.train_images, subject.device)

    @classmethod
    def tiny(cls) -> Config:
        return cls()


def reduce(images: Tensor) -> Tensor:
    """Images (B, C, H, W) uint8 as they are compared: means over areas where a side is above `SIDE`, as uint8."""
    if images.ndim != 4 or max(images.shape[2:]) <= SIDE:
        return images
    size = [max(1, round(side * SIDE / max(images.shape[2:]))) for side in images.shape[2:]]
    return functional.interpolate(images.to(torch.float32), size, mode="area").round().to(torch.uint8)


class Search:
    """The nearest of a stream of images to each of (N, C, H, W) uint8, by Euclidean distance of pixels in [-1, 1].

    distance: (N,) float64. which: (N,) int64, its number in the stream. seen: length of the stream so far. The nearest
    is found in float32, its distance then computed exactly: two candidates that float32 confuses are equally far to
    seven digits.
    """

    def __init__(self, images: Tensor, device: torch.device | str = "cpu") -> None:
        self.shape, self._images = tuple(images.shape[1:]), images.flatten(1).to(device)
        self.distance = torch.full((len(images),), torch.inf, dtype=torch.float64, device=device)
        self.which = torch.zeros(len(images), dtype=torch.int64, device=device)
        self._least = torch.full((len(images),), torch.inf, device=device)
        self.seen = 0

    def update(self, others: Tensor) -> None:
        """The next images of the stream, (T, C, H, W) uint8; an ArtokError when their shape is another."""
        if tuple(others.shape[1:]) != self.shape:
            raise ArtokError(
                f"images of shape {self.shape} cannot be compared with training images of {tuple(others.shape[1:])}"
            )
        for block in others.flatten(1).to(self._images.device).split(ROWS):
            pixels = block.to(torch.float32) / 127.5 - 1
            square = pixels.square().sum(1)
            for start in range(0, len(self._images), ROWS):
                values = self._images[start : start + ROWS].to(torch.float32) / 127.5 - 1
                found = (square - 2 * (values @ pixels.T)).min(1)
                nearer = (found.values < self._least[start : start + ROWS]).nonzero()[:, 0]
                rows, index = start + nearer, found.indices[nearer]
                gap = self._images[rows].to(torch.float64) - block[index].to(torch.float64)
                self.distance[rows] = gap.square().sum(1).sqrt() / 127.5
                self.which[rows], self._least[rows] = index + self.seen, found.values[nearer]
            self.seen += len(block)


def nearest(images: Tensor, others: Tensor, device: torch.device | str = "cpu") -> Search:
    """The finished search for the nearest of the others to each of the images, both (N, C, H, W) uint8."""
    search = Search(images, device)
    search.update(others)
    return search


class Memorisation(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "train_images"})
    optional: ClassVar[frozenset[str]] = frozenset({"images"})

    def __init__(self, train_images: int | None, device: str) -> None:
        """train_images: how many there are; those that are shown unless given. device: to compute on."""
        self._total, self._device = train_images, device
        self._rows = Rows("samples", "images")
        self._searches: tuple[Search, ...] = ()  # of samples and, where there are any, of held-out images

    @property
    def count(self) -> int:
        return self._rows.count("samples")

    def update(self, seen: EvalBatch) -> None:
        known = [None if images is None else reduce(images) for images in (seen.samples, seen.images)]
        if any(images is not None for images in known) and self._searches:
            raise ArtokError("copies are searched for among training images once all samples are there, not before")
        self._rows.update(EvalBatch(samples=known[0], images=known[1]))
        if seen.train_images is not None:
            enough("the search for copies", {"samples": self.count}, 1)
            self._searches = self._searches or tuple(Search(images, self._device) for images in self._compared())
            for search in self._searches:
                search.update(reduce(seen.train_images))

    def _compared(self) -> list[Tensor]:
        """Samples, and as many held-out images as there are samples: all would cost far more."""
        samples = self._rows.joined("samples")
        if not self._rows.count("images"):
            return [samples]
        held_out = self._rows.joined("images")
        few = torch.linspace(0, len(held_out) - 1, min(len(held_out), len(samples))).long()
        return [samples, held_out[few]]

    def compute(self) -> dict[str, float]:
        searched = self._searches[0].seen if self._searches else 0
        enough("the distance to the nearest training image", {"samples": self.count, "training": searched}, 1)
        to_train, *others = self._searches
        values = {DISTANCE: float(to_train.distance.quantile(0.5))}
        part = searched / self._total if self._total else 1.0
        if others:
            values[DISTANCE + HELD_OUT] = float(others[0].distance.quantile(0.5))
            held_out = self._rows.joined("images")
            to_held_out = nearest(self._rows.joined("samples"), held_out, self._device)
            share, chance = copies(to_train, to_held_out)
            values |= {COPIES: min(1.0, share / part), COPIES + HELD_OUT: min(1.0, chance / part)}
        if part < 1:
            values[SEARCHED] = part
        return values


def copies(to_train: Search, to_held_out: Search) -> tuple[float, float]:
    """The share of samples that are copies of a training image, from the nearest of either kind; and the most that
    chance shows of new images (two deviations).

    A new image has its nearest among the held-out ones as often as these are among all, a copy never. Chance has more
    room where many samples share one nearest image: it falls to one side with all of them.
    """
    train, held_out = to_train.seen, to_held_out.seen
    fresh = to_held_out.distance < to_train.distance
    which = torch.where(fresh, to_held_out.which + train, to_train.which)
    new = float(fresh.double().mean()) * (train + held_out) / held_out
    together = float(which.bincount().double().square().sum()) / len(which) ** 2
    return max(0.0, 1 - new), min(1.0, 2 * (train / held_out * together) ** 0.5)
