"""Chooses held-out images of a source without a test split, as a pure function of labels and seed."""

from __future__ import annotations

import torch
from torch import Tensor

from artok.noise import Noise, fold


def split_stratified(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (train, test), each ascending, of labels (N,) >= 0, with `held_out` in test.

    Each class gets its share by largest remainder; ties go to the lower class. A class keeps at least one training
    image, so fewer are held out when there are more classes than that leaves. The images of a class are drawn by
    `seed`, with the same result on every machine and library version.
    """
    counts = torch.bincount(labels)
    shares = counts * held_out // len(labels)
    remainders = counts * held_out - shares * len(labels)
    order = remainders.argsort(descending=True, stable=True)
    most = (counts - 1).clamp(min=0)
    wanted = held_out - int(shares.minimum(most).sum())
    shares = shares.minimum(most)
    while wanted and len(free := order[(shares < most)[order]]):
        shares[free[:wanted]] += 1
        wanted -= min(wanted, len(free))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in counts.nonzero().flatten().tolist():
        rows = (labels == label).nonzero().flatten()
        shuffled = Noise(fold("holdout", seed), torch.tensor([label])).permutation(len(rows))[0]
        test[rows[shuffled[: shares[label]]]] = True
    return (~test).nonzero().flatten(), test.nonzero().flatten()


def hold_out(labels: Tensor, fraction: float, seed: int, originals: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`split_stratified` for a fraction, with at least one test image if it is above 0, and one training image.

    originals: (N,) int64, for each image the first index of the same picture, which may be its own. Copies of a
    picture come to the same side.
    """
    if originals is None:
        originals = torch.arange(len(labels))
    distinct = (originals == torch.arange(len(labels))).nonzero().flatten()
    held_out = round(len(distinct) * fraction)
    if fraction > 0:
        held_out = min(max(held_out, 1), len(distinct) - 1)
    _, rows = split_stratified(labels[distinct], held_out, seed)
    test = torch.isin(originals, distinct[rows])
    return (~test).nonzero().flatten(), test.nonzero().flatten()
