"""Class consistency: the share of samples that the extractor's classifier takes for the class that was asked for.

It saturates (the mean image of every class scores 1), so it is a sanity check, never the headline. The share of
held-out images that the classifier gets right stands beside it: it is what real images would score.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from artok.metrics.base import HELD_OUT, EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity

NAME = "class_consistency"


class Config(MetricConfig):
    """Share of samples classified as their condition; the extractor must be one that predicts classes."""

    kind: Literal["consistency"] = "consistency"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            NAME,
            "class consistency",
            "",
            "higher",
            "Fidelity to the condition",
            "Share that the classifier takes for the class asked for. It saturates: a check, not a ranking.",
        ),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.extractor == "classifier"  # the one whose classes are those of the data

    def build(self, subject: MetricContext) -> ClassConsistency:
        return ClassConsistency()

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class ClassConsistency(Metric):
    needs: ClassVar[frozenset[str]] = frozenset({"conditions", "fake_predicted"})
    optional: ClassVar[frozenset[str]] = frozenset({"labels", "real_predicted"})

    def __init__(self) -> None:
        self._right, self._count = 0, 0
        self._real_right, self._real_count = 0, 0

    @property
    def count(self) -> int:
        return self._count

    def update(self, seen: EvalBatch) -> None:
        if seen.conditions is not None:
            self._right += _agreeing(seen.pair("conditions", "fake_predicted"))
            self._count += len(seen.conditions)
        if seen.labels is not None and seen.real_predicted is not None:
            self._real_right += _agreeing(seen.pair("labels", "real_predicted"))
            self._real_count += len(seen.labels)

    def compute(self) -> dict[str, float]:
        enough("class consistency", {"samples": self._count}, 1)
        values = {NAME: self._right / self._count}
        if self._real_count:
            values[NAME + HELD_OUT] = self._real_right / self._real_count
        return values


def _agreeing(pair: tuple[Tensor, Tensor]) -> int:
    return int((pair[0].cpu() == pair[1].cpu()).sum())
