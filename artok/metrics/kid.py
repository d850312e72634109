"""Kernel distance: the unbiased polynomial MMD of features (Binkowski et al. 2018, "Demystifying MMD GANs", eq. 4).

Unlike the Fréchet distance it has no bias in N: two sets of one distribution give zero on average, so single values
may be a little below zero.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from artok.metrics.base import MetricConfig, MetricContext, SetMetric, enough
from artok.metrics.quantity import Quantity

NAME = "kid"


class Config(MetricConfig):
    """Kernel distance of samples, or of reconstructions, to held-out images, over seeded subsets."""

    kind: Literal["kid"] = "kid"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            NAME,
            "KID",
            "",
            "lower",
            "Quality",
            "Kernel distance of the same features; unbiased, so it can fall below 0.",
            names_extractor=True,
        ),
    )
    subsets: int = Field(100, ge=1, description="subsets that the value is the mean of")
    subset_size: int = Field(1000, ge=2, description="images in a subset; all of them when there are fewer")

    def build(self, subject: MetricContext) -> KernelDistance:
        return KernelDistance(self.subsets, self.subset_size, subject.seed, subject.device)

    @classmethod
    def tiny(cls) -> Config:
        return cls(subsets=3)


def polynomial_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D) under the kernel (a.b / D + 1)^3, in float64."""
    x, y = x.to(torch.float64), y.to(torch.float64)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within_x = (xx.sum() - xx.trace()) / (len(x) * (len(x) - 1))
    within_y = (yy.sum() - yy.trace()) / (len(y) * (len(y) - 1))
    return float(within_x + within_y - 2 * xy.mean())


class KernelDistance(SetMetric):
    needs: ClassVar[frozenset[str]] = frozenset({"real_features", "fake_features"})

    def __init__(self, subsets: int, subset_size: int, seed: int, device: str) -> None:
        """subsets, subset_size: the value is the mean over this many pairs of subsets, drawn from `seed` as
        torch-fidelity draws them. device: to compute on.
        """
        super().__init__()
        self._subsets, self._subset_size, self._seed, self._device = subsets, subset_size, seed, device

    @property
    def count(self) -> int:
        return self.rows.count("fake_features")

    def compute(self) -> dict[str, float]:
        enough("the kernel distance", {"real": self.rows.count("real_features"), "generated": self.count}, 2)
        real, fake = (self.rows.joined(side).to(self._device) for side in ("real_features", "fake_features"))
        size = min(self._subset_size, len(real), len(fake))
        if size == len(real) == len(fake):
            return {NAME: polynomial_mmd(real, fake)}  # every subset would be the whole set
        draw = np.random.RandomState(self._seed)  # torch-fidelity's generator, for equal subsets
        values = [
            polynomial_mmd(
                real[torch.from_numpy(draw.choice(len(real), size, replace=False))],
                fake[torch.from_numpy(draw.choice(len(fake), size, replace=False))],
            )
            for _ in range(self._subsets)
        ]
        return {NAME: float(np.mean(values))}
