"""What every diffusion network keeps to: noisy tokens, times and labels in, a prediction for every token out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from artok.config import Part


class DiffusionNetwork(nn.Module, ABC):
    @abstractmethod
    def forward(self, x_BND: Tensor, times_B: Tensor, labels_B: Tensor) -> Tensor:
        """(B, N, out) for noisy tokens (B, N, D) row-major; the label one past the last class is "no label"."""


class NetworkConfig(Part, ABC):
    """The `network:` section."""

    @abstractmethod
    def refuse(self, grid: tuple[int, ...]) -> str | None:
        """Why it cannot run on such a grid (a phrase such as "needs two axes"), or None when it can."""

    @abstractmethod
    def build(self, grid: tuple[int, ...], width: int, out: int, classes: int) -> DiffusionNetwork:
        """The network for tokens of D = `width` numbers, `out` of which it puts out. The grid has passed `refuse`."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> NetworkConfig:
        """The smallest sensible setting, which the contract tests run."""
