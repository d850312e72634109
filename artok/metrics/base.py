"""What every metric keeps to: it says what it needs to see, is shown batches, and names its values.

Whoever evaluates fills a `EvalBatch` per batch; the images' features are computed once and shared by all metrics
(`artok.metrics.evaluate`), whose values become records with N, extractor and floor (`artok.metrics.results`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from artok.config import Part
from artok.errors import ArtokError
from artok.layout import TokenLayout
from artok.metrics.quantity import Quantity
from artok.oracle import MotionOracle, Oracle

HELD_OUT = "/held_out"  # ends the name of a value that held-out real images have, or would have, in the model's place


@dataclass(frozen=True)
class EvalBatch:
    """What there is to see of one batch. Any field may be missing; those of one group have the same rows.

    Held-out real images, B of them:
        images (B, C, H, W) uint8; labels (B,) int64; reconstructions (B, C, H, W) uint8; codes (B, N, K) int64;
        log_likelihood (B,) float64, nats of each image's tokens; real_features (B, D) float32;
        real_predicted (B,) int64, the extractor's class of each image; prompts, their B captions.
    What the model made, B rows of their own (reconstructions count when there are no samples):
        samples (B, C, H, W) uint8; conditions (B,) int64, the class asked for; fake_features (B, D) float32;
        fake_predicted (B,) int64; controls (B, c, H, W) uint8, the maps asked for; made_controls, as many maps of the
        samples.
    What the model made for texts, which may be the same samples or reconstructions:
        prompted (B, C, H, W) uint8; prompts, B texts; unseen (B,) bool, where they are of combinations held out of
        training.
    Edits of held-out images, whose features count as those of samples:
        edited, originals, pasted (B, C, H, W) uint8, and hidden (B, H, W) bool: the results, what they were made of,
        another image of the same class, and where the results were made anew.
    Clips that the model made, which may be the same samples or reconstructions, or the frames that continue given ones:
        clips (B, C, T, H, W) uint8; clip_classes (B,) int64, what they should show; true_clips, as many held-out clips
        that they should equal.
    Images may be clips (B, C, T, H, W) everywhere.
    Training images, for comparison:
        train_images (B, C, H, W) uint8, in batches after all samples and held-out images; train_log_likelihood (B,)
        float64.
    """

    images: Tensor | None = None
    labels: Tensor | None = None
    reconstructions: Tensor | None = None
    codes: Tensor | None = None
    log_likelihood: Tensor | None = None
    real_features: Tensor | None = None
    real_predicted: Tensor | None = None
    samples: Tensor | None = None
    conditions: Tensor | None = None
    controls: Tensor | None = None
    made_controls: Tensor | None = None
    fake_features: Tensor | None = None
    fake_predicted: Tensor | None = None
    prompted: Tensor | None = None
    prompts: Sequence[str] | None = None
    unseen: Tensor | None = None
    edited: Tensor | None = None
    originals: Tensor | None = None
    pasted: Tensor | None = None
    hidden: Tensor | None = None
    clips: Tensor | None = None
    clip_classes: Tensor | None = None
    true_clips: Tensor | None = None
    train_images: Tensor | None = None
    train_log_likelihood: Tensor | None = None

    def pair(self, first: str, second: str) -> tuple[Tensor, Tensor]:
        """Two fields whose rows belong together; an ArtokError when one is missing or their numbers differ."""
        one, other = getattr(self, first), getattr(self, second)
        if one is None or other is None or len(one) != len(other):
            counts = [0 if tensor is None else len(tensor) for tensor in (one, other)]
            raise ArtokError(f"{first} and {second} must have the same rows, got {counts[0]} and {counts[1]}")
        return one, other


FIELDS = frozenset(field.name for field in fields(EvalBatch))


class Rows:
    """The rows of some fields of `EvalBatch`, of all batches so far, for metrics that need them together."""

    def __init__(self, *fields: str) -> None:
        self._parts: dict[str, list[Tensor]] = {field: [] for field in fields}

    def update(self, seen: EvalBatch) -> None:
        for field, parts in self._parts.items():
            rows = getattr(seen, field)
            if rows is not None:
                parts.append(rows)

    def count(self, field: str) -> int:
        return sum(map(len, self._parts[field]))

    def joined(self, field: str) -> Tensor:
        """All rows of a field that has been seen. They are joined once, and the parts let go."""
        if len(self._parts[field]) > 1:
            self._parts[field] = [torch.cat(self._parts[field])]
        return self._parts[field][0]


@dataclass(frozen=True)
class MetricContext:
    """What is being measured, known before the first batch.

    layout: of the tokens, for metrics of codes and likelihoods. extractor: its name, which names what is computed from
    its features. seed: for metrics that draw subsets. modes: (M,) float64 probabilities of the data's modes, where they
    are known and are the extractor's classes. oracle: what checks captions in images, where the data have one.
    train_images: how many the data have, where a metric may be shown a part. device: where large products of float64
    are computed. control: the kind of the maps that were asked for. motion_oracle: what knows how things move in
    the data's clips. clips: whether the images are clips.
    """

    layout: TokenLayout | None = None
    extractor: str | None = None
    seed: int = 0
    modes: Tensor | None = None
    oracle: Oracle | None = None
    train_images: int | None = None
    device: str = "cpu"
    control: str | None = None
    motion_oracle: MotionOracle | None = None
    clips: bool = False

    def require_layout(self, metric: str) -> TokenLayout:
        if self.layout is None:
            raise ArtokError(f"the metric {metric} needs the token layout of what it measures")
        return self.layout


class Metric(ABC):
    """Values of a stream of batches.

    needs: fields of `EvalBatch` that it must be shown by the end. optional: fields that it also reports when it
    sees them. A batch may carry any of them; fields of other metrics are ignored. k: which neighbour its values are of,
    where they depend on one. reference: what it judges by, where that is not the held-out images; values of different
    ones are not comparable.
    """

    needs: ClassVar[frozenset[str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    k: int | None = None

    @property
    def reference(self) -> str | None:
        return None

    @property
    @abstractmethod
    def count(self) -> int:
        """Images measured so far: the model's where it compares them with real ones."""

    @abstractmethod
    def update(self, seen: EvalBatch) -> None:
        """Takes in a batch; an ArtokError when rows that belong together differ in number or shape."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Identifier to value, over all batches so far; an ArtokError when there were too few images."""

    def series(self) -> dict[str, tuple[float | None, ...]]:
        """Identifier to the values of each frame of a clip, where the metric has any; None where there is no value."""
        return {}


class SetMetric(Metric):
    """A metric of whole sets. rows: of what it needs; the metrics of one evaluation share one collection."""

    def __init__(self) -> None:
        self.rows = Rows(*self.needs)

    def update(self, seen: EvalBatch) -> None:
        self.rows.update(seen)


class MetricConfig(Part, ABC):
    """A metric's settings; `kind` is the name of its file.

    quantities: what its values are, by the names that `Metric.compute` gives. by_name: whether it is computed only
    where an evaluation names it.
    """

    quantities: ClassVar[tuple[Quantity, ...]]
    by_name: ClassVar[bool] = False

    def suits(self, subject: MetricContext) -> bool:
        """Whether it means anything for the subject; where it does not, an evaluation leaves it out."""
        return True

    @abstractmethod
    def build(self, subject: MetricContext) -> Metric:
        """The metric, having seen nothing; an ArtokError when the subject lacks what it must know."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> MetricConfig:
        """A setting for a dozen images, which the contract tests run."""


def as_series(values: Tensor) -> tuple[float | None, ...]:
    """Values (T,) for `Metric.series`, None in the place of NaN."""
    return tuple(None if math.isnan(value) else value for value in values.tolist())


def enough(metric: str, counts: Mapping[str, int], least: int) -> None:
    """An ArtokError unless each of the named counts is at least `least`."""
    if min(counts.values()) < least:
        have = " and ".join(f"{count} {name}" for name, count in counts.items())
        raise ArtokError(f"{metric} needs at least {least} images, but has {have}")
