"""What every network of a GAN keeps to: a random vector and a context in, a whole grid out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context
from artok.config import Part


class GanNetwork(nn.Module, ABC):
    """conditioner: what makes the contexts that it reads."""

    conditioner: Conditioners

    @abstractmethod
    def forward(self, latents_BZ: Tensor, context: Context) -> Tensor:
        """(B, D, h, w), with no bound on the values, for latents of unit variance."""


class GanNetworkConfig(Part, ABC):
    """The `network:` section of a GAN."""

    @abstractmethod
    def refuse(self, grid: tuple[int, ...]) -> str | None:
        """Why it cannot make such a grid (a phrase such as "needs two axes"), or None when it can."""

    @abstractmethod
    def build(
        self, latent: int, grid: tuple[int, ...], width: int, conditioners: Callable[[int], Conditioners]
    ) -> GanNetwork:
        """The network from `latent` numbers to tokens of D = `width` numbers. The grid has passed `refuse`.

        conditioners: makes those whose contexts are of a given width.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> GanNetworkConfig:
        """The smallest sensible setting, which the contract tests run."""


def refuse_halving(grid: tuple[int, ...], halvings: int) -> str | None:
    """Why a grid cannot be reached by so many doublings, or None."""
    if len(grid) != 2:
        return "needs a grid of two axes"
    if any(side % 2**halvings for side in grid):
        return f"doubles its grid {halvings} times, so it needs sides that are multiples of {2**halvings}"
    return None
