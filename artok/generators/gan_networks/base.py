"""The base class of GAN generator networks: a random vector and a context in, a grid of tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from pydantic import Field
from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context
from artok.config import Part


class GanNetwork(nn.Module, ABC):
    """conditioner: makes the contexts that it reads."""

    conditioner: Conditioners

    @abstractmethod
    def forward(self, latents_BZ: Tensor, context: Context) -> Tensor:
        """(B, D, h, w), unbounded, for latents of unit variance."""


class GanNetworkConfig(Part, ABC):
    """The `network:` section of a GAN. embedding_dim: numbers that a condition adds to the latent."""

    embedding_dim: int = Field(64, ge=1)

    @abstractmethod
    def refuse(self, grid: tuple[int, ...]) -> str | None:
        """The reason why it cannot make such a grid (a phrase such as "needs two axes"), or None."""

    @abstractmethod
    def build(
        self,
        latent: int,
        grid: tuple[int, ...],
        width: int,
        conditioners: Callable[[int, tuple[int, ...]], Conditioners],
    ) -> GanNetwork:
        """Build the network from `latent` numbers to tokens of D = `width` numbers. The grid has passed `refuse`.

        conditioners: makes conditioners with contexts of a given width and maps of a given grid.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> GanNetworkConfig:
        """A small config for the contract tests."""


def refuse_halving(grid: tuple[int, ...], halvings: int) -> str | None:
    """The reason why a grid is not the result of so many doublings, or None."""
    if len(grid) != 2:
        return "needs a grid of two axes"
    if any(side % 2**halvings for side in grid):
        return f"doubles its grid {halvings} times, so it needs sides that are multiples of {2**halvings}"
    return None
