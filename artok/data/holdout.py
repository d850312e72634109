"""Chooses held-out images of a source without a test split, as a pure function of labels and seed."""

from __future__ import annotations

import torch
from torch import Tensor

from artok.noise import Noise, fold


def split_stratified(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (train, test), each ascending, of labels (N,) >= 0, with exactly `held_out` in test.

    Each class gets its share by largest remainder; ties go to the lower class. The images of a class are drawn by
    `seed`, with the same result on every machine and library version.
    """
    counts = torch.bincount(labels)
    shares = counts * held_out // len(labels)
    remainders = counts * held_out - shares * len(labels)
    order = remainders.argsort(descending=True, stable=True)
    shares[order[: held_out - int(shares.sum())]] += 1
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in counts.nonzero().flatten().tolist():
        rows = (labels == label).nonzero().flatten()
        shuffled = Noise(fold("holdout", seed), torch.tensor([label])).permutation(len(rows))[0]
        test[rows[shuffled[: shares[label]]]] = True
    return (~test).nonzero().flatten(), test.nonzero().flatten()


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """`split_stratified` for a fraction, with at least one test image if it is above 0, and one training image."""
    held_out = round(len(labels) * fraction)
    if fraction > 0:
        held_out = min(max(held_out, 1), len(labels) - 1)
    return split_stratified(labels, held_out, seed)
