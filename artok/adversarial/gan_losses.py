"""GAN losses of a discriminator and its generator; scores are of any shape, and high means real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GanLossName = Literal["hinge", "non_saturating", "least_squares", "relativistic", "wasserstein"]


@dataclass(frozen=True)
class GanLoss:
    """discriminator(real, fake) and generator(real, fake): scores of one shape to scalars, means over all scores."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]


def discriminate_by_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Lim and Ye 2017, halved as in taming-transformers."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def discriminate_by_cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """Goodfellow et al. 2014, eq. 1: the cross-entropy of real against fake."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def discriminate_by_squares(real: Tensor, fake: Tensor) -> Tensor:
    """Mao et al. 2017, eq. 2 with a = 0 and b = c = 1."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def discriminate_pairs(real: Tensor, fake: Tensor) -> Tensor:
    """Jolicoeur-Martineau 2019, as R3GAN pairs them (Huang et al. 2024, eq. 3): real i must outscore fake i."""
    return F.softplus(fake - real).mean()


def discriminate_by_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Arjovsky et al. 2017: the negative estimate of the Wasserstein distance."""
    return fake.mean() - real.mean()


def raise_scores(real: Tensor, fake: Tensor) -> Tensor:
    return -fake.mean()


GAN_LOSSES: dict[GanLossName, GanLoss] = {
    "hinge": GanLoss(discriminate_by_hinge, raise_scores),
    "non_saturating": GanLoss(discriminate_by_cross_entropy, lambda real, fake: F.softplus(-fake).mean()),
    "least_squares": GanLoss(discriminate_by_squares, lambda real, fake: 0.5 * (fake - 1).square().mean()),
    "relativistic": GanLoss(discriminate_pairs, lambda real, fake: discriminate_pairs(fake, real)),
    "wasserstein": GanLoss(discriminate_by_distance, raise_scores),
}


def square_gradients(scores: Tensor, images: Tensor) -> Tensor:
    """|d score / d image|^2, (B,): summed over the numbers and the scores of each image, and differentiable.

    The R1 and R2 of Mescheder et al. 2018, eq. 9, without their factor gamma / 2.
    """
    (gradients,) = torch.autograd.grad(scores.float().sum(), images, create_graph=True)
    return gradients.float().square().flatten(1).sum(1)
