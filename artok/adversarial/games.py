"""What a critic and its opponent minimise; scores are of any shape, and high means real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GameName = Literal["hinge", "non_saturating", "least_squares", "relativistic", "wasserstein"]


@dataclass(frozen=True)
class Game:
    """critic(real, fake) and opponent(real, fake): scores of the same shape to scalars, means over all scores."""

    critic: Callable[[Tensor, Tensor], Tensor]
    opponent: Callable[[Tensor, Tensor], Tensor]


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Lim and Ye 2017, halved as in taming-transformers."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def logistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Goodfellow et al. 2014, eq. 1: the cross-entropy of real against fake."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def squares_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Mao et al. 2017, eq. 2 with a = 0 and b = c = 1."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def pairing_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Jolicoeur-Martineau 2019, as R3GAN pairs them (Huang et al. 2024, eq. 3): real i must outscore fake i."""
    return F.softplus(fake - real).mean()


def pairing_opponent(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(real - fake).mean()


def distance_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Arjovsky et al. 2017: the negative estimate of the Wasserstein distance."""
    return fake.mean() - real.mean()


def score_opponent(real: Tensor, fake: Tensor) -> Tensor:
    return -fake.mean()


GAMES: dict[GameName, Game] = {
    "hinge": Game(hinge_critic, score_opponent),
    "non_saturating": Game(logistic_critic, lambda real, fake: F.softplus(-fake).mean()),
    "least_squares": Game(squares_critic, lambda real, fake: 0.5 * (fake - 1).square().mean()),
    "relativistic": Game(pairing_critic, pairing_opponent),
    "wasserstein": Game(distance_critic, score_opponent),
}


def squared_slopes(scores: Tensor, images: Tensor) -> Tensor:
    """|d score / d image|^2, (B,): summed over an image's numbers and over its scores, ready to be trained through.

    The R1 and R2 of Mescheder et al. 2018, eq. 9, without their factor gamma / 2.
    """
    (slopes,) = torch.autograd.grad(scores.float().sum(), images, create_graph=True)
    return slopes.float().square().flatten(1).sum(1)
