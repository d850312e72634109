"""Edits of held-out images: whether known pixels are kept, and how far the made ones are from the image's own."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from artok.errors import ArtokError
from artok.metrics.base import EvalBatch, Metric, MetricConfig, MetricContext, enough
from artok.metrics.quantity import Quantity

ERROR, KEPT = "fill_error", "known_kept"
EDIT = "edit_"  # begins the part of a value's name that says how images were edited, as in `fd/edit_left`


class Config(MetricConfig):
    """Error of what edits put into the hidden part, and the share of edits whose known pixels are all the image's."""

    kind: Literal["edits"] = "edits"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity(
            ERROR,
            "fill error",
            "",
            "lower",
            "Editing",
            "Squared error of the hidden part over that of another image of the class. A blur has a low one too.",
        ),
        Quantity(
            KEPT,
            "known part kept",
            "",
            "higher",
            "Editing",
            "Share of edits whose known pixels all equal the image's own.",
        ),
    )

    def build(self, subject: MetricContext) -> Edits:
        return Edits()

    @classmethod
    def tiny(cls) -> Config:
        return cls()


class Edits(Metric):
    """Errors are pooled over the hidden pixels of all images."""

    needs: ClassVar[frozenset[str]] = frozenset({"edited", "originals", "hidden", "pasted"})

    def __init__(self) -> None:
        self._made, self._pasted, self._kept, self._count = 0.0, 0.0, 0, 0

    @property
    def count(self) -> int:
        return self._count

    def update(self, seen: EvalBatch) -> None:
        if seen.edited is None:
            return
        edited, originals = seen.pair("edited", "originals")
        pasted, hidden = seen.pair("pasted", "hidden")
        seen.pair("edited", "hidden")
        mask = hidden[:, None].expand_as(edited)
        self._made += _squares(edited, originals, mask)
        self._pasted += _squares(pasted, originals, mask)
        self._kept += int(((edited == originals) | mask).flatten(1).all(1).sum())
        self._count += len(edited)

    def compute(self) -> dict[str, float]:
        enough("the error of edits", {"edited": self._count}, 1)
        if not self._pasted:
            raise ArtokError("the error of edits needs images of a class that differ, and all of them are the same")
        return {ERROR: self._made / self._pasted, KEPT: self._kept / self._count}


def _squares(made: Tensor, originals: Tensor, mask: Tensor) -> float:
    """Summed squared differences where the mask is; integers, so no rounding depends on batches."""
    gap = made.to(torch.int64) - originals.to(torch.int64)
    return float((gap.square() * mask).sum())
