"""What every diffusion network keeps to: noisy tokens, times and a context in, a prediction for every token out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from artok.conditioning.base import Conditioners, Context
from artok.config import Part


class DiffusionNetwork(nn.Module, ABC):
    """conditioner: what makes the contexts that it reads."""

    conditioner: Conditioners

    @abstractmethod
    def forward(self, x_BND: Tensor, times_B: Tensor, context: Context) -> Tensor:
        """(B, N, out) for noisy tokens (B, N, D) row-major."""


class NetworkConfig(Part, ABC):
    """The `network:` section."""

    @abstractmethod
    def refuse(self, grid: tuple[int, ...]) -> str | None:
        """Why it cannot run on such a grid (a phrase such as "needs two axes"), or None when it can."""

    @abstractmethod
    def build(
        self, grid: tuple[int, ...], width: int, out: int, conditioners: Callable[[int], Conditioners]
    ) -> DiffusionNetwork:
        """The network for tokens of D = `width` numbers, to `out` numbers. The grid has passed `refuse`.

        conditioners: makes those whose contexts are of a given width.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> NetworkConfig:
        """The smallest sensible setting, which the contract tests run."""
