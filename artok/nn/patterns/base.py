"""What every attention pattern keeps to: queries, keys and values of a grid's tokens in, their weighted sums out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from artok.config import Part
from artok.nn.attention import attend


class AttentionPattern(ABC):
    """The attention of one layer over the tokens of a grid, row-major. It has no weights.

    pairs: of a query and a key that are multiplied, per head. A layer takes 4 x width x pairs FLOPs.
    """

    pairs: int

    @abstractmethod
    def __call__(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D)) v over the keys that each query sees, (B, H, N, D)."""

    @abstractmethod
    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Bool: whether tokens `query` attend to tokens `key`, int64 positions that broadcast together."""

    def mask(self, device: torch.device | None = None) -> Tensor:
        """`sees` of every pair, (N, N) bool: what the pattern is, for masked full attention on a small grid."""
        every = torch.arange(self.length, device=device)
        return self.sees(every[:, None], every[None])

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens N."""


class PatternConfig(Part, ABC):
    """The `attention:` section of a network."""

    @abstractmethod
    def refuse(self, grid: tuple[int, ...]) -> str | None:
        """The reason why it does not fit a grid (a phrase such as "needs three axes"), or None."""

    @abstractmethod
    def build(self, grid: tuple[int, ...], layer: int) -> AttentionPattern | None:
        """The pattern of a layer; None for full attention. The grid has passed `refuse`."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> PatternConfig:
        """A setting for the contract tests, which run it on a grid of 5 x 4 x 4."""


def coordinates(token: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Where on the axes of a grid tokens are, int64 each."""
    places = []
    for side in reversed(grid):
        places.append(token % side)
        token = token // side
    return tuple(reversed(places))


def attend_in_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` of (B, H, G, N, D): full attention within each of G groups."""
    shape = q.shape
    q, k, v = (x.flatten(1, 2) for x in (q, k, v))
    return attend(q, k, v).view(shape)
