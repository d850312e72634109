"""What every text encoder keeps to: strings to a `Text`, and a `Text` to vectors of the generator's width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from artok.config import Part
from artok.layout import Text


class TextEncoder(nn.Module, ABC):
    """encode: strings to ids or features, which is done once per text. forward: those to vectors of width W.

    length: most entries L of a text. vocab: number of ids, or None where `encode` gives features. frozen: what `encode`
    uses is not trained and not saved, and its features may be cached.
    """

    length: int
    vocab: int | None = None
    frozen: ClassVar[bool] = False

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Text:
        """The texts (B) as a `Text` of `length` L, entries first and padding last, on the CPU. An empty string has no
        entries. Texts of more entries are cut.

        ConfigError: what it needs is missing.
        """

    @abstractmethod
    def count(self, texts: Sequence[str]) -> list[int]:
        """Entries that each text has before it is cut."""

    @abstractmethod
    def forward(self, text: Text) -> Tensor:
        """Vectors (B, L, W); arbitrary where the mask is False."""

    @abstractmethod
    def example(self, rows: int, device: torch.device) -> Text:
        """What `encode` could give for texts of `length` entries."""

    @abstractmethod
    def initialise(self, fill: Callable[[Tensor], object]) -> None:
        """Give the embeddings their first values. fill: sets a tensor in place."""

    def fit(self, texts: Iterable[str]) -> None:
        """Learn from the captions of the training data what `encode` needs, before training."""
        return

    @property
    def mark(self) -> str:
        """Changes when the features of `encode` do; for frozen encoders."""
        raise NotImplementedError


class TextEncoderConfig(Part, ABC):
    """The `encoder:` section of a text condition. length: most entries of a text."""

    length: int = Field(32, ge=1, le=4096)

    @abstractmethod
    def build(self, width: int) -> TextEncoder:
        """The encoder to vectors of `width`."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> TextEncoderConfig:
        """The smallest sensible setting, which the contract tests run."""
