"""Classes covered: the share of the real images' classes that samples show at all.

A class counts as shown when the extractor's classifier finds it in the samples at least a tenth as often as in the
held-out images. A generator that has collapsed leaves classes out, or draws others in their place.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from artok.metrics.base import MetricConfig, MetricContext, SetMetric, enough
from artok.metrics.quantity import Quantity

NAME = "classes_covered"
LEAST = 0.1  # of a class's share among real images


class Config(MetricConfig):
    """Share of classes that the samples show; the extractor must be one that predicts classes."""

    kind: Literal["classes"] = "classes"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            NAME,
            "classes covered",
            "",
            "higher",
            "Diversity",
            "Share of classes that the classifier finds often enough.",
        ),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.extractor == "classifier"  # the one whose classes are those of the data

    def build(self, subject: MetricContext) -> ClassesCovered:
        return ClassesCovered()

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class ClassesCovered(SetMetric):
    needs: ClassVar[frozenset[str]] = frozenset({"real_predicted", "fake_predicted"})

    @property
    def count(self) -> int:
        return self.rows.count("fake_predicted")

    def compute(self) -> dict[str, float]:
        counts = {"samples": self.count, "held-out": self.rows.count("real_predicted")}
        enough("the share of classes covered", counts, 1)
        real, fake = self.rows.joined("real_predicted"), self.rows.joined("fake_predicted")
        classes = 1 + int(max(real.max(), fake.max()))
        shares = [torch.bincount(found, minlength=classes).double() / len(found) for found in (real, fake)]
        present = shares[0] > 0
        covered = present & (shares[1] >= LEAST * shares[0])
        return {NAME: float(covered.sum() / present.sum())}
