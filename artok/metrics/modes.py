"""Modes covered: how many of the kinds of image that the data are known to have appear among the samples, how evenly.

The customary test is Stacked MNIST: three digits as colour channels have 1,000 modes, which a classifier of single
digits reads. Reported are the modes that appear at least once and the KL divergence of the samples' modes from the
data's (the "reverse" one: Srivastava et al. 2017, arXiv 1705.07761; Lin et al. 2018, arXiv 1712.04086). Both depend on
the number of samples, customarily 25,600 at 1,000 modes, so each has as its floor what independent samples of the data
would give on average, in closed form.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from artok.errors import ArtokError
from artok.metrics.base import HELD_OUT, EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity

COVERED, DIVERGENCE = "modes_covered", "modes_kl_nats"


class Config(MetricConfig):
    """Modes covered and their divergence from the data's; the extractor must be one whose classes are the modes."""

    kind: Literal["modes"] = "modes"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            COVERED,
            "modes covered",
            "",
            "higher",
            "Diversity",
            "Modes of the data that appear among the samples. The floor is independent samples of the data.",
        ),
        Quantity(
            DIVERGENCE,
            "KL of modes",
            "nats",
            "lower",
            "Diversity",
            "How far the shares of the modes are from the data's. The floor is independent samples of the data.",
        ),
    )
    count: int | None = Field(None, ge=2, description="number of equally likely modes; those of the data unless given")

    def suits(self, subject: MetricContext) -> bool:
        return self.count is not None or subject.modes is not None

    def build(self, subject: MetricContext) -> Modes:
        if self.count is not None:
            return Modes(torch.full((self.count,), 1 / self.count, dtype=torch.float64))
        if subject.modes is None:
            raise ArtokError("the metric modes needs data whose modes are known, or their number as its 'count'")
        return Modes(subject.modes)

    @classmethod
    def tiny(cls) -> Config:
        return cls(count=3)


def of_stacks(labels: Tensor, classes: int, channels: int) -> Tensor:
    """Probability of each mode, (classes ** channels,) float64, when every channel is one of labels (N,) by chance.

    The first channel counts most: the mode of classes 1, 2, 3 of ten is number 123.
    """
    shares = torch.bincount(labels, minlength=classes).to(torch.float64) / len(labels)
    modes = shares
    for _ in range(channels - 1):
        modes = torch.outer(modes, shares).flatten()
    return modes


def expected_covered(modes: Tensor, count: int) -> float:
    """Modes that appear at least once among `count` independent draws, on average: the sum of 1 - (1 - p) ** count."""
    return float((1 - (1 - modes.to(torch.float64)) ** count).sum())


def expected_divergence(modes: Tensor, count: int) -> float:
    """KL divergence of the shares among `count` independent draws from `modes`, on average, in nats.

    Exact: each mode's number k of draws is binomial, and its term is k / count log(k / (count p)). For many draws it
    is near (modes - 1) / (2 count).
    """
    kinds, times = modes[modes > 0].to(torch.float64).unique(return_counts=True)
    total = 0.0
    for p, many in zip(kinds.tolist(), times.tolist(), strict=True):
        # Beyond this the binomial weighs less than float64 can tell (12 deviations, and more where they are few).
        most = min(count, math.ceil(count * p + 12 * math.sqrt(count * p) + 40))
        k = torch.arange(1, most + 1, dtype=torch.float64)
        whole = torch.tensor(float(count), dtype=torch.float64)
        choose = torch.lgamma(whole + 1) - torch.lgamma(k + 1) - torch.lgamma(whole - k + 1)
        misses = torch.where(k < count, (count - k) * math.log1p(-p) if p < 1 else -torch.inf, 0.0)
        weight = (choose + k * math.log(p) + misses).exp()
        total += many * float((weight * k / count * (k / (count * p)).log()).sum())
    return total


def divergence(counts: Tensor, modes: Tensor) -> float:
    """KL divergence of the shares of counts (M,) from the probabilities modes (M,), in nats; infinite is refused."""
    seen = counts > 0
    if bool((modes[seen] <= 0).any()):
        raise ArtokError("samples show modes that the data do not have, so their divergence from it is infinite")
    shares = counts[seen].to(torch.float64) / counts.sum()
    return float((shares * (shares / modes[seen]).log()).sum())


class Modes(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"fake_predicted"})

    def __init__(self, modes: Tensor) -> None:
        self._modes = modes
        self._counts = torch.zeros(len(modes), dtype=torch.int64)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def update(self, seen: EvalBatch) -> None:
        if seen.fake_predicted is None:
            return
        if len(seen.fake_predicted) and int(seen.fake_predicted.max()) >= len(self._modes):
            raise ArtokError(f"mode {int(seen.fake_predicted.max())} is outside the {len(self._modes)} modes")
        self._counts += torch.bincount(seen.fake_predicted.cpu(), minlength=len(self._modes))

    def compute(self) -> dict[str, float]:
        enough("the number of modes", {"samples": self.count}, 1)
        return {
            COVERED: float((self._counts > 0).sum()),
            COVERED + HELD_OUT: expected_covered(self._modes, self.count),
            DIVERGENCE: divergence(self._counts, self._modes),
            DIVERGENCE + HELD_OUT: expected_divergence(self._modes, self.count),
        }
