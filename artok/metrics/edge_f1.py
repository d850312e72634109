"""Whether generated images have the edges that were asked for, within a tolerance of some pixels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity

NAME = "edge_f1"


class Config(MetricConfig):
    """F1 of the samples' edges against the control's, for generators that are given edges. tolerance: pixels along each
    axis that an edge may be away."""

    kind: Literal["edge_f1"] = "edge_f1"
    tolerance: int = Field(1, ge=0)
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            NAME,
            "edge F1",
            "",
            "higher",
            "Fidelity to the condition",
            "Agreement of the samples' edges with those asked for, within a pixel; 1 when all are there and no others.",
        ),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.control == "edges"

    def build(self, subject: MetricContext) -> EdgeF1:
        return EdgeF1(self.tolerance)

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class EdgeF1(Metric):
    """The mean over images."""

    needs: ClassVar[frozenset[str]] = frozenset({"controls", "made_controls"})

    def __init__(self, tolerance: int) -> None:
        self._tolerance, self._sum, self._count = tolerance, 0.0, 0

    @property
    def count(self) -> int:
        return self._count

    def update(self, seen: EvalBatch) -> None:
        if seen.made_controls is None:
            return
        asked, made = seen.pair("controls", "made_controls")
        scores = f1(asked > 0, made > 0, self._tolerance)
        self._sum, self._count = self._sum + float(scores.sum()), self._count + len(scores)

    def compute(self) -> dict[str, float]:
        enough("edge F1", {"samples": self._count}, 1)
        return {NAME: self._sum / self._count}


def f1(asked: Tensor, made: Tensor, tolerance: int) -> Tensor:
    """F1 of each pair of edges (B, 1, H, W) bool, (B,) float64.

    Precision is the share of `made` pixels that have an asked one within `tolerance` along each axis, recall the
    reverse. It is 1 for two images without edges, and 0 where only one has some.
    """
    precision, recall = _near(made, asked, tolerance), _near(asked, made, tolerance)
    both = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    empty = ~asked.flatten(1).any(1) & ~made.flatten(1).any(1)
    return torch.where(empty, 1.0, both)


def _near(edges: Tensor, others: Tensor, tolerance: int) -> Tensor:
    """(B,) float64: the share of `edges` that have one of the others within the tolerance; 0 without edges."""
    side = 2 * tolerance + 1
    reach = functional.max_pool2d(others.double(), side, stride=1, padding=tolerance)
    count = edges.flatten(1).sum(1).clamp(min=1)
    return (edges.double() * reach).flatten(1).sum(1) / count
