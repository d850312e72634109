"""What a few hundred samples tell of a generator's diversity, cheaply enough to ask while it trains.

Each value has a partner measured on real images, since what can be reached depends on the data, the features and the
number of images; `artok.training.health` says which values are called a collapse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from artok.metrics.prdc import distance_blocks, precision_recall

NEIGHBOURS = 5  # of the balls of precision, recall and coverage
DUPLICATE = 0.25  # of the median distance between real neighbours: two samples nearer than that are one sample twice


def nearest(features: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distance (N,) float64 and index (N,) of the nearest of `others` (M, D) to each of features (N, D).

    Without others, of the nearest of the features themselves other than the one asked about (N of 2 or more).
    """
    distances, indices = [], []
    for start, block in distance_blocks(features, features if others is None else others):
        if others is None:
            rows = torch.arange(len(block), device=block.device)
            block[rows, start + rows] = torch.inf
        found = block.min(1)
        distances.append(found.values)
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)


def classes_covered(reference: Tensor, reference_labels: Tensor, features: Tensor, labels: Tensor) -> float:
    """Share of the classes in `labels` (N,) that at least half of their features (N, D) are recognised as.

    A sample is recognised as the class of its nearest neighbour among the reference: real features (M, D) with labels
    (M,). A class that none of the reference has cannot be covered.
    """
    right = (reference_labels[nearest(features, reference)[1]] == labels).double()
    shares = [float(right[labels == label].mean()) for label in labels.unique().tolist()]
    return sum(share >= 0.5 for share in shares) / len(shares)


def distinct(features: Tensor, real: Tensor) -> dict[str, float]:
    """How samples (N, D) keep apart from one another, against real images (M, D).

    distinct: share of the samples with no other within a quarter of the distance at which real images usually (in the
    median) have their nearest neighbour. neighbour_ratio: the samples' median distance to their nearest, over that of
    real images: near 0 when all are alike.
    """
    usual = nearest(real)[0].median()
    own = nearest(features)[0]
    ratio = float(own.median() / usual) if usual > 0 else 1.0  # half of the real images are copies of others
    return {"distinct": float((own > DUPLICATE * usual).double().mean()), "neighbour_ratio": ratio}


def measure_diversity(
    real: Tensor, train: Tensor, fake: Tensor, real_labels: Tensor, train_labels: Tensor, fake_labels: Tensor
) -> dict[str, float]:
    """All of it for generated features against held-out ones, and under `..._floor` for training images in their place.

    real (M, D), train (T, D) and fake (N, D) with their labels; each has more than `NEIGHBOURS` rows. classes_covered
    is left out with fewer than two classes, or fewer than two samples a class. Samples are recognised by held-out and
    training images together, held-out ones by training images alone.
    """
    values = distinct(fake, real)
    for suffix, features in (("", fake), ("_floor", train)):
        balls = precision_recall(real, features, NEIGHBOURS)
        values |= {f"{name}{suffix}": balls[name] for name in ("precision", "recall", "coverage")}
    classes = len(fake_labels.unique())
    if classes > 1 and len(fake) >= 2 * classes:
        both, both_labels = torch.cat([real, train]), torch.cat([real_labels, train_labels])
        values["classes_covered"] = classes_covered(both, both_labels, fake, fake_labels)
        values["classes_covered_floor"] = classes_covered(train, train_labels, real, real_labels)
    return values
