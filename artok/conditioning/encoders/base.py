"""What every text encoder keeps to: strings to a `Text`, and a `Text` to vectors of the generator's width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from artok.conditioning.encoders.stored import StoredTexts
from artok.config import Part
from artok.layout import Text

KEPT = 256 * 2**20  # bytes of encoded texts that are remembered

Entries: TypeAlias = NDArray[Any]  # of one text, (n,) int64 ids or (n, E) float16 features


class TextEncoder(nn.Module, ABC):
    """encode: strings to ids or features, which is done once per text. forward: those to vectors of width W.

    length: most entries L of a text. vocab: number of ids, or None where `encode` gives features. stored: texts
    whose entries are on the disk.
    """

    vocab: int | None = None

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.stored: tuple[StoredTexts, ...] = ()
        self._known: dict[str, Entries] = {}  # the oldest first
        self._kept = 0

    def encode(self, texts: Sequence[str]) -> Text:
        """The texts (B) as a `Text` of `length` L, entries first and padding last, on the CPU. An empty string has no
        entries. Texts of more entries are cut. What was encoded before is taken from memory or from `stored`.

        ConfigError: what it needs is missing.
        """
        found = self._recall(list(dict.fromkeys(texts)))
        new = [text for text, entries in found.items() if entries is None]
        for text, fresh in zip(new, self.entries(new) if new else [], strict=True):
            found[text] = fresh
            self._remember(text, fresh)
        rows = [entries for text in texts if (entries := found[text]) is not None]
        values = np.zeros((len(rows), self.length, *rows[0].shape[1:]), rows[0].dtype)
        for place, entries in zip(values, rows, strict=True):
            place[: len(entries)] = entries
        counts = torch.tensor([len(entries) for entries in rows])
        return Text(torch.from_numpy(values), torch.arange(self.length) < counts[:, None])

    def _recall(self, texts: list[str]) -> dict[str, Entries | None]:
        found: dict[str, Entries | None] = {text: self._known.get(text) for text in texts}
        for store in self.stored:
            missing = [text for text, entries in found.items() if entries is None]
            found |= dict(zip(missing, store.find(missing), strict=True))
        return found

    def _remember(self, text: str, entries: Entries) -> None:
        self._known[text] = entries
        self._kept += entries.nbytes
        while self._kept > KEPT:
            self._kept -= self._known.pop(next(iter(self._known))).nbytes

    def forget(self) -> None:
        """Forget the encoded texts, as `encode` has changed."""
        self._known, self._kept = {}, 0

    @abstractmethod
    def entries(self, texts: Sequence[str]) -> list[Entries]:
        """The entries of each text, at most `length`, encoded now. ConfigError: as for `encode`."""

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

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether `fit` was called, or what it gave was loaded."""

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Before training, learn from the captions of the training data what `encode` needs."""


class TextEncoderConfig(Part, ABC):
    """The `encoder:` section of a text condition. length: most entries of a text."""

    length: int = Field(32, ge=1, le=4096)

    @abstractmethod
    def build(self, width: int) -> TextEncoder:
        """The encoder to vectors of `width`."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> TextEncoderConfig:
        """The smallest sensible setting, which the contract tests run. It needs no files."""
