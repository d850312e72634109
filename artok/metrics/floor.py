"""The floor of a distance between sets: what two disjoint real sets of that size give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from artok.errors import ArtokError
from artok.metrics.base import EvalBatch, Metric

SETS = frozenset({"real_features", "fake_features"})


def floor(
    metrics: Sequence[Metric],
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    n: int,
    seed: int = 0,
) -> dict[str, float]:
    """The values that n training images get in place of generated ones, against the same held-out images.

    metrics: fresh ones; those that need more than two sets of features are left out. *_features: (N, D) float32,
    *_labels: (N,) int64. n: how many images were generated. The n are drawn with the held-out images' class shares:
    class imbalance alone doubles a Fréchet distance. An ArtokError when a class has too few training images for n.
    """
    rows = stratified(train_labels, test_labels, n, seed)
    seen = EvalBatch(real_features=test_features, fake_features=train_features[rows])
    values: dict[str, float] = {}
    for metric in metrics:
        if metric.needs <= SETS:
            metric.update(seen)
            values |= metric.compute()
    return values


def class_counts(labels: Tensor, n: int) -> Tensor:
    """How n images share out over the classes as `labels` (N,) do, (classes,) int64 summing to n.

    By largest remainder, ties to the lower class; with n = N it is the exact count of each class.
    """
    shares = torch.bincount(labels.cpu()).to(torch.float64) * n / len(labels)
    counts = shares.floor().to(torch.int64)
    remainder = (shares - counts).sort(descending=True, stable=True).indices
    counts[remainder[: n - int(counts.sum())]] += 1
    return counts


def stratified(labels: Tensor, like: Tensor, n: int, seed: int = 0) -> Tensor:
    """Indices (n,) into `labels` (N,), drawn without replacement with the class shares of `like` (M,).

    An ArtokError names the class that has too few.
    """
    if n < 1 or len(like) == 0:
        raise ArtokError(f"a floor needs images on both sides, got {n} and {len(like)}")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label, count in enumerate(class_counts(like, n).tolist()):
        found = (labels.cpu() == label).nonzero()[:, 0]
        if len(found) < count:
            raise ArtokError(
                f"a floor of {n} images needs {count} training images of class {label}, but there are {len(found)}; "
                f"at most {largest(labels, like)} images have a floor"
            )
        rows.append(found[torch.randperm(len(found), generator=generator)[:count]])
    return torch.cat(rows)


def largest(labels: Tensor, like: Tensor) -> int:
    """The most images that `stratified` can draw from `labels` (N,) with the class shares of `like` (M,)."""
    low, high = 0, len(labels)
    have = torch.bincount(labels.cpu(), minlength=int(like.max()) + 1)
    while low < high:
        middle = (low + high + 1) // 2
        counts = class_counts(like, middle)
        fits = bool((counts <= have[: len(counts)]).all())
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
