"""Exact likelihood of held-out images' tokens, per token and per image dimension.

Bits per image dimension here are a rate: what a lossless code of the tokens would spend on each number of the image.
They are not the bits per dimension of a model of pixels, since the tokenizer loses part of the image.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch

from artok.layout import TokenLayout
from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity

TRAIN = "_train"


class Config(MetricConfig):
    """Nats a token and bits per image dimension of held-out images; the same of training images when shown."""

    kind: Literal["likelihood"] = "likelihood"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            "nats_per_token",
            "nats per token",
            "",
            "lower",
            "Likelihood",
            "Negative log-likelihood of a held-out token, given the class.",
        ),
        Quantity(
            "bits_per_dim",
            "bits/dim (rate)",
            "",
            "lower",
            "Likelihood",
            "The same as the rate of a lossy code, in bits for each number of the image.",
        ),
        Quantity(
            "nats_per_token_train",
            "nats per token (train)",
            "",
            "",
            "Likelihood",
            "The same on training images: far lower than held out means memorised.",
        ),
        Quantity("bits_per_dim_train", "bits/dim (rate) (train)", "", "", "Likelihood", "The same on training images."),
    )

    def suits(self, subject: MetricContext) -> bool:
        return subject.layout is not None

    def build(self, subject: MetricContext) -> Likelihood:
        return Likelihood(subject.require_layout("likelihood"))

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Likelihood(Metric):
    """nats_per_token = -mean(log p) / (N K); bits_per_dim = -mean(log p) / (ln 2 * C H W).

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

    def update(self, seen: EvalBatch) -> None:
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
                values["nats_per_token" + split] = nats / self._tokens
                values["bits_per_dim" + split] = nats / (math.log(2) * self._dimensions)
        return values
