"""Exact likelihood of held-out images' tokens, per token and per image dimension.

Bits per image dimension here are a rate: what a lossless code of the tokens would spend on each number of the image.
They are not the bits per dimension of a model of pixels, since the tokenizer loses part of the image.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch

from artok.layout import TokenLayout
from artok.metrics.base import Metric, MetricConfig, Seen, Subject, enough

TRAIN = " (train)"


class Config(MetricConfig):
    """Nats a token and bits per image dimension of held-out images; the same of training images when shown."""

    kind: Literal["likelihood"] = "likelihood"

    def build(self, subject: Subject) -> Likelihood:
        return Likelihood(subject.require_layout("likelihood"))

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Likelihood(Metric):
    """nats/token = -mean(log p) / (N K); bits/dim (rate) = -mean(log p) / (ln 2 * C H W).

    K codes at one position are K tokens. A gap between held-out and training images is memorisation.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"log_likelihood"})
    optional: ClassVar[frozenset[str]] = frozenset({"train_log_likelihood"})

    def __init__(self, layout: TokenLayout) -> None:
        self._tokens, self._dimensions = layout.length * layout.codes, layout.dimensions
        self._sums, self._counts = {"": 0.0, TRAIN: 0.0}, {"": 0, TRAIN: 0}

    @property
    def count(self) -> int:
        return self._counts[""]

    def update(self, seen: Seen) -> None:
        for split, values in (("", seen.log_likelihood), (TRAIN, seen.train_log_likelihood)):
            if values is not None:
                self._sums[split] += float(values.to(torch.float64).sum())
                self._counts[split] += len(values)

    def compute(self) -> dict[str, float]:
        enough("likelihood", {"held-out": self._counts[""]}, 1)
        values = {}
        for split, count in self._counts.items():
            if count:
                nats = -self._sums[split] / count
                values["nats/token" + split] = nats / self._tokens
                values["bits/dim (rate)" + split] = nats / (math.log(2) * self._dimensions)
        return values
