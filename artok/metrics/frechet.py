"""Fréchet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

Its label is FID only when the features are those of the published Inception; otherwise `FD[extractor]`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity

NAME = "fd"
PART = 4096  # vectors held as float64 at once


class Config(MetricConfig):
    """Fréchet distance of samples, or of reconstructions, to held-out images."""

    kind: Literal["frechet"] = "frechet"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            NAME,
            "FD",
            "",
            "lower",
            "Quality",
            "Fréchet distance between the features of these images and of held-out ones.",
            names_extractor=True,
        ),
    )

    def build(self, subject: MetricContext) -> FrechetDistance:
        return FrechetDistance()

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Moments:
    """Mean and covariance of a stream of vectors, in float64, merged pairwise (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._scatter = torch.zeros((), dtype=torch.float64)

    def update(self, vectors: Tensor) -> None:
        """vectors: (B, D); taken in parts, since in float64 they are twice as large."""
        for part in vectors.split(PART):
            self._merge(part.to(torch.float64))

    def _merge(self, vectors: Tensor) -> None:
        if len(vectors) == 0:
            return
        mean = vectors.mean(0)
        centred = vectors - mean
        scatter = centred.T @ centred
        gap = mean - self.mean
        share = len(vectors) / (self.count + len(vectors))
        self._scatter = self._scatter + scatter + torch.outer(gap, gap) * (self.count * share)
        self.mean = self.mean + gap * share
        self.count += len(vectors)

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased."""
        return self._scatter / (self.count - 1)


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix, its rounding noise below zero cut off."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in float64.

    means: (D,), covariances: (D, D). The trace of the square root is the sum of the singular values of
    C1^(1/2) C2^(1/2): real, never negative, and exact to rounding even when N < D leaves the covariances singular,
    where the square root of the product C1 C2 itself loses half of the digits or turns complex.
    """
    mean_1, covariance_1 = mean_1.to(torch.float64), covariance_1.to(torch.float64)
    mean_2, covariance_2 = mean_2.to(torch.float64), covariance_2.to(torch.float64)
    overlap = torch.linalg.svdvals(_root(covariance_1) @ _root(covariance_2)).sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * overlap
    return max(0.0, float(distance))  # equal sets land within rounding of zero, on either side


class FrechetDistance(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"real_features", "fake_features"})

    def __init__(self) -> None:
        self._real, self._fake = Moments(), Moments()

    @property
    def count(self) -> int:
        return self._fake.count

    def update(self, seen: EvalBatch) -> None:
        for moments, features in ((self._real, seen.real_features), (self._fake, seen.fake_features)):
            if features is not None:
                moments.update(features)

    def compute(self) -> dict[str, float]:
        enough("the Fréchet distance", {"real": self._real.count, "generated": self._fake.count}, 2)
        real, fake = self._real, self._fake
        return {NAME: frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)}
