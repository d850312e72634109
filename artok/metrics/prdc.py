"""Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020).

Each set of features is a union of balls, one around every vector, reaching to its k-th nearest neighbour of its own
set. Precision is the share of generated vectors inside the real set's balls, recall the share of real vectors inside
the generated set's; density counts how many real balls hold a generated vector, over k (1 for equal distributions,
above it for a sharper one); coverage is the share of real balls that hold any generated vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from artok.metrics.base import MetricConfig, MetricContext, SetMetric, enough
from artok.metrics.quantity import Quantity

BLOCK = 1 << 24  # distances held at once: 128 MiB of float64, whatever the number of images


class Config(MetricConfig):
    """Precision, recall, density and coverage of samples, or of reconstructions, against held-out images."""

    kind: Literal["prdc"] = "prdc"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "precision",
            "precision",
            "",
            "higher",
            "Quality",
            "Share of these images that lie where real ones do.",
            names_extractor=True,
        ),
        Quantity(
            "density",
            "density",
            "",
            "higher",
            "Quality",
            "How many real neighbourhoods an image lies in, 1 when as real ones do.",
            names_extractor=True,
        ),
        Quantity(
            "recall",
            "recall",
            "",
            "higher",
            "Diversity",
            "Share of real images that lie where these do.",
            names_extractor=True,
        ),
        Quantity(
            "coverage",
            "coverage",
            "",
            "higher",
            "Diversity",
            "Share of real images with one of these among their neighbours.",
            names_extractor=True,
        ),
    )
    neighbours: int = Field(5, ge=1, description="k, which neighbour of its own set a ball reaches to; ADM takes 3")

    def build(self, subject: MetricContext) -> PrecisionRecall:
        return PrecisionRecall(self.neighbours, subject.device)

    @classmethod
    def tiny(cls) -> Config:
        return cls(neighbours=2)


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Euclidean distances of (N, D) to (M, D), as (first row, (rows, M) float64) for as many rows as memory allows."""
    y = y.to(torch.float64)
    # A common shift changes no distance; near the origin |x|^2 + |y|^2 - 2 x.y cancels the fewest digits.
    centre = y.mean(0)
    y = y - centre
    square_y = y.square().sum(1)
    rows = max(1, BLOCK // len(y))
    for start in range(0, len(x), rows):
        part = x[start : start + rows].to(torch.float64) - centre
        square = torch.addmm(square_y, part, y.T, alpha=-2).add_(part.square().sum(1, keepdim=True))
        yield start, square.clamp_(min=0).sqrt_()


def radii(features: Tensor, neighbours: int) -> Tensor:
    """Distance of each of (N, D) to its k-th nearest neighbour other than itself, (N,) float64."""
    parts = []
    for start, distances in distance_blocks(features, features):
        index = torch.arange(len(distances), device=features.device)
        distances[index, start + index] = torch.inf
        parts.append(distances.kthvalue(neighbours, dim=1).values)
    return torch.cat(parts)


def precision_recall(real: Tensor, fake: Tensor, neighbours: int) -> dict[str, float]:
    """Precision, recall, density and coverage of features fake (M, D) against real (N, D).

    Equal to `prdc.compute_prdc(real, fake, nearest_k)`, in blocks and float64. Both need more than `neighbours` rows.
    """
    radii_real, radii_fake = radii(real, neighbours), radii(fake, neighbours)
    holders = torch.zeros(len(fake), dtype=torch.int64, device=fake.device)
    recalled = covered = 0
    for start, distances in distance_blocks(real, fake):
        reach = radii_real[start : start + len(distances), None]
        inside = distances < reach
        holders += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((distances < radii_fake).any(1).sum())
    return {
        "precision": float((holders > 0).double().mean()),
        "recall": recalled / len(real),
        "density": float(holders.double().mean()) / neighbours,
        "coverage": covered / len(real),
    }


class PrecisionRecall(SetMetric):
    needs: ClassVar[frozenset[str]] = frozenset({"real_features", "fake_features"})
    k: int

    def __init__(self, neighbours: int, device: str) -> None:
        super().__init__()
        self.k, self._device = neighbours, device

    @property
    def count(self) -> int:
        return self.rows.count("fake_features")

    def compute(self) -> dict[str, float]:
        counts = {"real": self.rows.count("real_features"), "generated": self.count}
        enough(f"precision and recall with {self.k} neighbours", counts, self.k + 1)
        real, fake = (self.rows.joined(side).to(self._device) for side in ("real_features", "fake_features"))
        return precision_recall(real, fake, self.k)
